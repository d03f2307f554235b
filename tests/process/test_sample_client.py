"""The client Deployment under k8s/samples: its program, on nodes of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

from process.calls import call
from process.cluster import ready_cluster
from process.running import eventually
from redis_server import RedisServer

SAMPLE = Path(__file__).parents[2] / "k8s/samples/client/deployment.yaml"


def test_the_sample_client_takes_jobs_and_ends_in_good_order(
    tmp_path: Path, redis: RedisServer
) -> None:
    config, _ = yaml.safe_load_all(SAMPLE.read_text())
    program, output = tmp_path / "main.py", tmp_path / "output"
    program.write_text(config["data"]["main.py"])
    with ready_cluster(tmp_path, 1, options=[f"--redis={redis.url}"]) as cluster:
        with output.open("wb") as file:
            client = subprocess.Popen(
                [sys.executable, program],
                env={**os.environ, "DISTSYNC_URL": cluster.url("n1")},
                stdout=file,
                stderr=file,
            )
        try:
            pushed = call(f"{cluster.url('n1')}/queue/push", {"queue": "jobs", "body": "one"})
            assert pushed.status == 200, pushed
            eventually(lambda: "writing the report with token 1" in output.read_text())
            client.terminate()
            assert client.wait(timeout=60) == 0, output.read_text()
        finally:
            client.kill()
            client.wait()
        stats = call(f"{cluster.url('n1')}/queue/jobs")["stats"]
        assert (stats["acked"], stats["in_flight"]) == (1, 0)
    assert output.read_text().splitlines() == ["job one", "writing the report with token 1"]
