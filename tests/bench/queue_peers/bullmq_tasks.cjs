// BullMQ: `node bullmq_tasks.cjs worker` and `node bullmq_tasks.cjs producer`; handling.py says what
// they do. Finished jobs are not kept. A producer that gets 'b' bytes adds as many as came at once.
"use strict";

const fs = require("node:fs");
const { Queue, Worker } = require("bullmq");

const CONCURRENCY = 64;
const BODY_BYTES = 200;
const NAME = "bench";
const BULK = "b".charCodeAt(0);

const url = new URL(process.env.BENCH_REDIS_URL);
const connection = { host: url.hostname, port: Number(url.port) };

function nowNs() {
  return process.hrtime.bigint(); // CLOCK_MONOTONIC on Linux
}

function newJob() {
  const body = String(nowNs()).padStart(20, "0").padEnd(BODY_BYTES, "x");
  return { name: "handle", data: { body }, opts: { removeOnComplete: true } };
}

function work() {
  const handled = fs.openSync(process.env.BENCH_HANDLED, "w");
  const latency = Buffer.alloc(8);
  const handle = async (job) => {
    latency.writeBigInt64LE(nowNs() - BigInt(job.data.body.slice(0, 20)));
    fs.writeSync(handled, latency);
  };
  return new Worker(NAME, handle, { connection, concurrency: CONCURRENCY });
}

function produce() {
  const queue = new Queue(NAME, { connection });
  const fail = (error) => {
    console.error(error);
    process.exit(1);
  };
  process.stdin.on("data", (credits) => {
    if (credits[0] === BULK) {
      queue.addBulk(Array.from(credits, newJob)).catch(fail);
      return;
    }
    for (const _ of credits) {
      const { name, data, opts } = newJob();
      queue.add(name, data, opts).catch(fail);
    }
  });
  process.stdin.on("end", () => queue.close().then(() => process.exit(0)));
}

if (process.argv[2] === "worker") {
  module.exports = work();
} else {
  produce();
}
