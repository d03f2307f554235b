"""A push, a claim and an ack of which somebody dies in the middle, at a step that the test decides.

Who calls (a worker) asks a forwarder, which asks the owner, which asks Redis; an ack runs where it
arrives. A gate in front of each node's Redis holds all three at one step:

    requests  the scripts have left the node and not reached Redis. They reach it in the end, when
              all has been done again elsewhere, even if the node that sent them is dead by then.
    answers   the scripts have run, and nobody knows.

Then one of the four is killed with -9. What was not answered is asked again at another node, under
the same request id, as clients do.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from process.calls import Answer, ask, call, get
from process.cluster import Cluster, running
from process.redis_gate import RedisGate, Way
from process.running import eventually
from redis_server import RedisServer

FORWARDER, OWNER, OTHER = "n1", "n2", "n3"
LONG_MS = 600_000  # no deadline passes in a test that has claims of this
WORKER = """
import sys, urllib.request
url, body = sys.argv[1:]
request = urllib.request.Request(url, body.encode(), {"content-type": "application/json"})
print("here", flush=True)
sys.stdin.readline()
print(urllib.request.urlopen(request, timeout=100).read().decode(), flush=True)
sys.stdin.read()
"""


@dataclass
class Place:
    """Three nodes with a gate each, in front of one Redis."""

    cluster: Cluster
    redis: RedisServer
    gates: dict[str, RedisGate]
    used: list[str] = field(default_factory=list)

    def queue(self) -> str:
        """A queue of the owner that no test has used, known to owner and forwarder.

        Who did not answer a moment ago is asked again only after another one.
        """
        name = self.cluster.queue_of(OWNER, but=self.used)
        self.used.append(name)

        def is_forwarded() -> bool:
            self.ask(FORWARDER, "pop", queue=name)
            return self.gates[OWNER].saw(f"{{{name}}}")

        eventually(is_forwarded, what="the forwarder asks the owner")
        for node in (OWNER, FORWARDER):
            self.ask(node, "push", queue=name, body="to begin with")
            (message,) = self.ask(node, "pop", queue=name)["messages"]
            self.ask(node, "ack", queue=name, receipts=[message["receipt"]])
        return name

    def ask(self, node: str, verb: str, **body: Any) -> Answer:
        """Ask a node that has to do it."""
        return ask(f"{self.cluster.url(node)}/queue/{verb}", **body)

    def stats(self, queue: str) -> Any:
        """The statistics of a queue, since it was made ready."""
        stats = get(f"{self.cluster.url(OTHER)}/queue/{queue}")["stats"]
        return {**stats, "pushed": stats["pushed"] - 2, "acked": stats["acked"] - 2}

    def work(self, node: str, verb: str, body: Any) -> subprocess.Popen[str]:
        """A process that asks a node when it is let go, tells the answer, and lives on."""
        url = f"{self.cluster.url(node)}/queue/{verb}"
        worker = subprocess.Popen(
            [sys.executable, "-S", "-c", WORKER, url, json.dumps(body)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert worker.stdout is not None
        assert worker.stdout.readline() == "here\n"
        return worker

    def open_gates(self) -> None:
        for gate in self.gates.values():
            gate.open()


def let_go(*workers: subprocess.Popen[str]) -> None:
    """Have them ask, all at once: an owner that one waited for in vain is not asked by the next."""
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()


def end(worker: subprocess.Popen[str]) -> None:
    worker.kill()
    worker.communicate()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, redis: RedisServer) -> Iterator[Place]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    gates = {name: RedisGate(redis.socket) for name in cluster.names}
    for name, gate in gates.items():
        cluster.own_options[name] = ["--redis", gate.url]
    try:
        with running(cluster):
            cluster.wait_for_ring(cluster.names)
            yield Place(cluster, redis, gates)
    finally:
        for gate in gates.values():
            gate.close()


@pytest.mark.parametrize("victim", ["worker", "forwarder", "owner", "redis"])
@pytest.mark.parametrize("step", ["requests", "answers"])
def test_a_death_at_any_step_loses_and_doubles_nothing(
    place: Place, step: Way, victim: str
) -> None:
    pushing, popping, acking = (place.queue() for _ in range(3))
    for queue in (popping, acking):
        place.ask(OTHER, "push", queue=queue, body="x")
    (claimed,) = place.ask(OTHER, "pop", queue=acking, visibility_ms=LONG_MS)["messages"]
    push = {"queue": pushing, "body": "x", "request_id": f"push {pushing}"}
    pop = {"queue": popping, "visibility_ms": LONG_MS, "request_id": f"pop {popping}"}
    receipts = [claimed["receipt"]]
    ack = {"queue": acking, "receipts": receipts, "request_id": f"ack {acking}"}

    def is_reached() -> bool:
        if step == "requests":
            held = [f"{{{queue}}}" for queue in (pushing, popping)]
            acks = place.gates[OWNER if victim == "owner" else FORWARDER]
            return place.gates[OWNER].saw(*held) and acks.saw(f"{{{acking}}}")
        return (
            place.stats(pushing)["pushed"] == 1
            and place.stats(popping)["in_flight"] == 1
            and place.stats(acking)["acked"] == 1
        )

    workers = [
        place.work(FORWARDER, "push", push),
        place.work(FORWARDER, "pop", pop),
        place.work(OWNER if victim == "owner" else FORWARDER, "ack", ack),
    ]
    try:
        for name in (FORWARDER, OWNER):
            place.gates[name].hold(step)
        let_go(*workers)
        eventually(is_reached, what=step)
        match victim:
            case "worker":
                for worker in workers:
                    end(worker)
            case "redis":
                place.redis.kill()
                place.redis.start()
            case _:
                place.cluster.kill(FORWARDER if victim == "forwarder" else OWNER)
        place.ask(OTHER, "push", **push)
        (got,) = place.ask(OTHER, "pop", **pop)["messages"]
        place.ask(OTHER, "ack", **ack)
        place.open_gates()
        if victim in ("forwarder", "owner"):
            place.cluster.start(FORWARDER if victim == "forwarder" else OWNER)
            place.cluster.wait_ready()
            place.cluster.wait_for_ring(place.cluster.names)
    finally:
        place.open_gates()
        for worker in workers:
            end(worker)
    eventually(lambda: all(gate.is_empty() for gate in place.gates.values()))
    for node in place.cluster.names:
        assert place.ask(node, "pop", queue=popping)["messages"] == []
        assert place.ask(node, "pop", queue=acking)["messages"] == []
    assert place.stats(acking)["in_flight"] == 0
    assert (got["deliveries"], place.stats(popping)["in_flight"]) == (1, 1)
    place.ask(OTHER, "ack", queue=popping, receipts=[got["receipt"]])
    (pushed,) = place.ask(OTHER, "pop", queue=pushing, max=10)["messages"]
    assert (pushed["body"], pushed["deliveries"]) == ("x", 1)


@pytest.mark.parametrize("verb", ["push", "pop"])
def test_what_the_owner_has_done_is_not_said_to_be_undone(place: Place, verb: str) -> None:
    """Its answer is on the way; the forwarder gives up waiting and has no Redis to do it itself."""
    queue = place.queue()
    request = {"queue": queue, "request_id": f"{verb} {queue}"}
    if verb == "push":
        request["body"] = "x"
    else:
        place.ask(OTHER, "push", queue=queue, body="x")
    place.gates[OWNER].hold("answers")
    place.gates[FORWARDER].cut()
    try:
        answer = call(f"{place.cluster.url(FORWARDER)}/queue/{verb}", request)
    finally:
        place.open_gates()
    assert (answer.status, answer["code"]) == (504, "outcome_unknown")
    place.ask(OTHER, verb, **request)
    stats = place.stats(queue)
    assert (stats["pushed"], stats["in_flight"]) == (1, int(verb == "pop"))


@pytest.mark.parametrize("step", ["requests", "answers"])
def test_what_a_worker_that_died_was_to_be_given_returns_at_once(place: Place, step: Way) -> None:
    """No byte of the answer was written, so no delivery is spent."""
    queue = place.queue()
    place.ask(OTHER, "push", queue=queue, body="x")
    gate = place.gates[OWNER]
    worker = place.work(FORWARDER, "pop", {"queue": queue, "visibility_ms": LONG_MS})
    try:
        gate.hold(step)
        let_go(worker)
        if step == "requests":
            eventually(lambda: gate.saw(f"{{{queue}}}"))
        else:
            eventually(lambda: place.stats(queue)["in_flight"] == 1)
        end(worker)
    finally:
        gate.open()
        end(worker)
    (message,) = place.ask(OTHER, "pop", queue=queue, wait_ms=30_000)["messages"]
    assert message["deliveries"] == 1


def test_what_a_worker_that_died_has_been_given_returns_at_its_deadline(place: Place) -> None:
    queue = place.queue()
    place.ask(OTHER, "push", queue=queue, body="x")
    worker = place.work(FORWARDER, "pop", {"queue": queue, "visibility_ms": 1_500})
    try:
        asked_at = time.monotonic()
        let_go(worker)
        assert worker.stdout is not None
        assert json.loads(worker.stdout.readline())["messages"]
        given_at = time.monotonic()
    finally:
        end(worker)
    (message,) = place.ask(OTHER, "pop", queue=queue, wait_ms=30_000)["messages"]
    assert message["deliveries"] == 2
    assert time.monotonic() - asked_at >= 1.5
    assert time.monotonic() - given_at < 1.5 + 5
