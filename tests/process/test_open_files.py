"""A node whose clients take all the open files that it may have."""

from __future__ import annotations

import contextlib
import http.client
import json
import resource
import socket
from pathlib import Path
from typing import Any

from process.calls import get
from process.cluster import ready_cluster
from process.running import eventually

OPEN_FILES = 256
CONNECTIONS = 400
NAMES = [f"{i:0512}" for i in range(64)]  # 32 KiB, more than 500 of which fill a segment


def post(connection: http.client.HTTPConnection, path: str, body: object) -> tuple[int, Any]:
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def test_a_node_full_of_idle_connections_serves_and_keeps_its_log(tmp_path: Path) -> None:
    with contextlib.ExitStack() as undo:
        cluster = undo.enter_context(ready_cluster(tmp_path, 1))
        process = cluster.processes["n1"]
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
        early = http.client.HTTPConnection("127.0.0.1", cluster.port("n1"), timeout=30)
        undo.callback(early.close)
        assert post(early, "/lock/acquire", {"name": "a", "owner": "early"})[0] == 200
        idle = [
            undo.enter_context(socket.create_connection(("127.0.0.1", cluster.port("n1"))))
            for _ in range(CONNECTIONS)
        ]
        idle[-1].settimeout(30)
        assert b"limit_reached" in idle[-1].recv(4_096)

        health = f"{cluster.url('n1')}/healthz"
        eventually(lambda: get(health)["status"] == "ok", what="an answer to a probe")
        crowd = http.client.HTTPConnection("127.0.0.1", cluster.port("n1"), timeout=30)
        undo.callback(crowd.close)
        status, answer = post(crowd, "/lock/acquire", {"name": "b", "owner": "crowd"})
        assert (status, answer["limit"]) == (429, "connections")

        for owner in range(600):
            body = {"names": NAMES, "owner": f"{owner}", "ttl_ms": 60_000}
            status, answer = post(early, "/lock/acquire_many", body)
            assert status == (409 if owner else 200), answer
        assert process.poll() is None
        files = {path.name for path in (cluster.data_dir("n1") / "member").iterdir()}
        assert any(name.startswith("log-") and int(name[4:]) > 1 for name in files), files
        assert any(name.startswith("snapshot-") and int(name[9:]) > 1 for name in files), files

        for connection in idle:
            connection.close()

        def let_in() -> bool:
            late = http.client.HTTPConnection("127.0.0.1", cluster.port("n1"), timeout=30)
            with contextlib.closing(late):
                return post(late, "/lock/acquire", {"name": "b", "owner": "late"})[0] == 200

        eventually(let_in, what="room for a connection")
