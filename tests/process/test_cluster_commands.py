"""`distsync status` and `distsync member` against real nodes."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from process.running import Up, distsync, eventually, running_cluster


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Up]:
    with running_cluster(tmp_path / "cluster") as up:
        yield up


def ask(cluster: Up, *arguments: str) -> Any:
    ended = distsync(
        *arguments,
        "--output=json",
        url=cluster.url,
        env={"DISTSYNC_SECRET_FILE": str(cluster.secret_file)},
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_status_shows_every_node_and_marks_the_leader(cluster: Up) -> None:
    table = distsync("status", url=cluster.urls[0]).stdout.splitlines()
    assert table[0].split() == [
        "NAME",
        "ROLE",
        "VOTER",
        "TERM",
        "COMMIT",
        "APPLIED",
        "STATE",
        "URL",
    ]
    assert [line[3:].split()[0] for line in table[1:]] == cluster.names
    marked = [line for line in table[1:] if line.startswith("*")]
    assert len(marked) == 1
    assert "leader" in marked[0]

    status = ask(cluster, "status")
    assert [node["name"] for node in status["nodes"]] == cluster.names
    leaders = [node for node in status["nodes"] if node["leader"]]
    assert [node["name"] for node in leaders] == [status["leader"]]
    assert {node["voter"] for node in status["nodes"]} == {True}


def test_status_tells_a_node_that_does_not_answer(cluster: Up) -> None:
    os.kill(cluster.pids["node-2"], signal.SIGSTOP)
    try:
        survivors = ",".join([cluster.urls[0], cluster.urls[2]])

        def settled() -> Any:
            ended = distsync("status", "--output=json", url=survivors)
            status = json.loads(ended.stdout)
            states = {node["name"]: node["state"] for node in status["nodes"]}
            is_settled = status["leader"] not in (None, "node-2") and (
                states["node-1"] == states["node-3"] == "ready"
            )
            return states if is_settled else None

        states = eventually(settled)
        assert states == {"node-1": "ready", "node-2": "unreachable", "node-3": "ready"}
        table = distsync("status", url=survivors).stdout
        assert "unreachable" in table
    finally:
        os.kill(cluster.pids["node-2"], signal.SIGCONT)


def test_leadership_goes_where_it_is_sent(cluster: Up) -> None:
    leader = ask(cluster, "status")["leader"]
    target = next(name for name in cluster.names if name != leader)
    assert transferred(cluster, target) == {"leader": target}
    assert ask(cluster, "status")["leader"] == target
    assert transferred(cluster)["leader"] != target


def transferred(cluster: Up, *target: str) -> Any:
    """Hand leadership over; who was too slow to take it is asked again."""
    return eventually(lambda: ask(cluster, "member", "transfer", *target), what="a transfer")


def test_a_member_is_demoted_promoted_and_removed_for_good(cluster: Up) -> None:
    def voters() -> dict[str, bool]:
        return {m["name"]: m["voter"] for m in ask(cluster, "member", "list")["members"]}

    assert voters() == dict.fromkeys(cluster.names, True)
    leader = ask(cluster, "status")["leader"]
    target = next(name for name in cluster.names if name != leader)
    demoted = ask(cluster, "member", "demote", target)
    assert {m["name"]: m["voter"] for m in demoted["members"]}[target] is False
    ask(cluster, "member", "promote", target, "--wait=30s")
    assert voters() == dict.fromkeys(cluster.names, True)
    removed = ask(cluster, "member", "remove", target)
    assert target not in {m["name"] for m in removed["members"]}

    unknown = distsync(
        "member", "remove", "node-9", f"--secret-file={cluster.secret_file}", url=cluster.url
    )
    assert unknown.returncode == 1
    assert "node-9 is not a member" in unknown.stderr
    url = cluster.urls[cluster.names.index(target)]
    eventually(lambda: f"{target} " in distsync("status", url=url).stdout)


def test_ring_shows_shares_and_owners(cluster: Up) -> None:
    eventually(lambda: len(ask(cluster, "ring")["servers"]) == 3, what="three servers in the ring")
    ring = ask(cluster, "ring")
    assert [server["name"] for server in ring["servers"]] == cluster.names
    assert abs(sum(server["share"] for server in ring["servers"]) - 1) < 1e-4
    owner = ask(cluster, "ring", "orders/42")["owner"]
    for url in cluster.urls:
        told = distsync("ring", "orders/42", url=url)
        assert told.stdout == f"orders/42 is owned by {owner} (epoch {ring['epoch']})\n"
    table = distsync("ring", url=cluster.urls[0]).stdout.splitlines()
    assert table[0].split() == ["NAME", "SHARE", "WEIGHT", "URL"]
    assert table[-1] == f"epoch {ring['epoch']}, 160 virtual nodes each"
