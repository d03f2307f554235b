"""`distsync queue` against real nodes and a real Redis.

What ends by itself runs in this process: the start of another takes longer than most of it.
"""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pytest

from distsync import Client
from process.calls import call, get
from process.running import (
    COMMAND,
    Up,
    completions,
    distsync_here,
    eventually,
    is_running,
    read_until,
    running_cluster,
    state_of,
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_cluster(tmp_path_factory.mktemp("queue-command") / "cluster") as up:
        yield up


@pytest.fixture
def name() -> str:
    return f"emails/{uuid4().hex[:8]}"


def run(
    cluster: Up, *arguments: str, given: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    return distsync_here("queue", *arguments, url=cluster.url, given=given.encode(), env=variables)


def said(cluster: Up, *arguments: str, given: str = "") -> list[str]:
    ended = run(cluster, *arguments, given=given)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout.splitlines()


def ask(cluster: Up, *arguments: str) -> Any:
    ended = run(cluster, *arguments, "--output", "json")
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def refused(cluster: Up, *arguments: str) -> str:
    ended = run(cluster, *arguments)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.count("\n") == 1
    return ended.stderr


def feed(cluster: Up, text: str, *arguments: str) -> list[str]:
    return said(cluster, "push", *arguments, given=text)


def push(cluster: Up, name: str, *bodies: str) -> list[str]:
    """Push without the command."""
    messages = [{"body": body} for body in bodies]
    answer = call(f"{cluster.urls[0]}/queue/push", {"queue": name, "messages": messages})
    return list(answer["ids"])


def listed(cluster: Up, name: str, order: str = "ready") -> list[dict[str, Any]]:
    """List without the command."""
    path = f"/queue/{quote(name, safe='')}/messages?order={order}"
    return list(get(f"{cluster.urls[0]}{path}")["messages"])


def stats(cluster: Up, name: str) -> dict[str, Any]:
    """Ask for statistics without the command."""
    return dict(get(f"{cluster.urls[0]}/queue/{quote(name, safe='')}")["stats"])


# --- Messages --------------------------------------------------------------------------------


def test_a_message_is_pushed_looked_at_claimed_and_acknowledged(cluster: Up, name: str) -> None:
    (id,) = said(cluster, "push", name, "hello", "--priority=3", "--group=ada")
    assert [m["body"] for m in ask(cluster, "peek", name)["messages"]] == ["hello"]
    assert said(cluster, "peek", name)[1].split() == [id, "3", "ada", "0", "hello"]

    (message,) = ask(cluster, "pop", name, "--visibility=1m")["messages"]
    assert (message["id"], message["body"], message["deliveries"]) == (id, "hello", 1)
    assert 50_000 < message["expires_in_ms"] <= 60_000
    assert ask(cluster, "get", name, id)["phase"] == "in_flight"
    assert "message_in_flight" in refused(cluster, "cancel", name, id)

    assert said(cluster, "ack", name, message["receipt"]) == ["1 acknowledged"]
    stale = refused(cluster, "ack", name, message["receipt"])
    assert stale == (
        f"distsync: {name}: 1 of 1 claims had ended: {message['receipt']} (stale_receipt)\n"
    )
    assert "message_not_found" in refused(cluster, "get", name, id)


def test_bodies_come_from_arguments_input_and_files_as_they_are(
    cluster: Up, name: str, tmp_path: Path
) -> None:
    file = tmp_path / "body"
    file.write_text("from a\nfile")
    for arguments in (["--stdin"], ["-"], []):
        feed(cluster, "from\ninput\n", name, *arguments)
    said(cluster, "push", name, "--file", str(file))
    said(cluster, "push", name, "--", "-5")
    bodies = [m["body"] for m in ask(cluster, "pop", name, "--max=10", "--ack")["messages"]]
    assert bodies == ["from\ninput\n"] * 3 + ["from a\nfile", "-5"]
    assert stats(cluster, name)["acked"] == 5

    file.write_bytes(b"\xff")
    assert "the message is not UTF-8" in refused(cluster, "push", name, "--file", str(file))
    file.write_bytes(b"x" * 300_000)
    assert "longer than 256 KiB" in refused(cluster, "push", name, "--file", str(file))


def test_lines_are_messages_in_batches(cluster: Up, name: str) -> None:
    ids = feed(cluster, "".join(f"{n}\n" for n in range(250)), name, "--lines", "--priority=2")
    assert len(set(ids)) == 250
    messages = ask(cluster, "list", name, "--limit=0")["messages"]
    assert [message["id"] for message in messages] == ids
    assert [message["body"] for message in messages] == [str(n) for n in range(250)]
    assert {message["priority"] for message in messages} == {2}


def test_a_line_is_pushed_before_the_next_one_is_written(cluster: Up, name: str) -> None:
    with subprocess.Popen(
        [*COMMAND, "queue", "push", name, "--lines"],
        env={**os.environ, "DISTSYNC_URL": cluster.url},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as pushing:
        assert pushing.stdin is not None
        assert pushing.stdout is not None
        for count in (1, 2):
            pushing.stdin.write(f"line {count}\n")
            assert pushing.stdout.readline().strip()
            assert stats(cluster, name)["pushed"] == count
        pushing.send_signal(signal.SIGINT)  # while it waits for a line
        assert pushing.wait(timeout=30) == 130


def test_lines_that_were_pushed_before_a_failure_are_told(cluster: Up, name: str) -> None:
    said(cluster, "config", name, "--create", "--max-length=100")
    ended = run(cluster, "push", name, "--lines", given="x\n" * 150)
    assert ended.returncode == 1
    assert len(ended.stdout.splitlines()) == 100
    assert ended.stderr.startswith("distsync: after 100 messages: ")
    assert ended.stderr.endswith("(queue_full)\n")


def test_each_item_that_cannot_be_is_told(cluster: Up, name: str) -> None:
    ended = run(cluster, "push", name, "--lines", "--group=a\x01b", given="x\n" * 8)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("distsync: after 0 messages: messages[0].group: ")
    assert "; messages[4].group: " in ended.stderr
    assert ended.stderr.endswith("; and 3 more (bad_request)\n")
    push(cluster, name, "x")
    (message,) = ask(cluster, "pop", name)["messages"]
    told = refused(cluster, "ack", name, "rubbish", message["receipt"], "nonsense")
    assert "receipts[0]: is not a receipt; receipts[2]: is not a receipt" in told
    assert stats(cluster, name)["in_flight"] == 1


def test_the_same_dedupe_id_is_the_same_message(cluster: Up, name: str) -> None:
    first = ask(cluster, "push", name, "x", "--dedupe-id=d")
    assert ask(cluster, "push", name, "x", "--dedupe-id=d") == first
    assert ask(cluster, "stats", name)["stats"]["deduplicated"] == 1


def test_a_pop_prints_bodies_waits_and_says_when_there_is_none(cluster: Up, name: str) -> None:
    said(cluster, "push", name, "two\nlines")
    said(cluster, "push", name, "late", "--delay=1s")
    assert said(cluster, "pop", name, "--ack") == ["two", "lines"]
    assert said(cluster, "pop", name, "--wait=30s") == ["late"]
    ended = run(cluster, "pop", name)
    assert (ended.returncode, ended.stdout) == (75, "")
    assert ended.stderr == f"distsync: {name} has no message to claim (queue_empty)\n"
    ended = run(cluster, "pop", name, "--wait=100ms", "--output=json")
    assert (ended.returncode, json.loads(ended.stdout)) == (75, {"messages": []})


def test_messages_are_given_back_die_and_are_put_back(cluster: Up, name: str) -> None:
    first, second = feed(cluster, "a\nb\n", name, "--lines")
    receipts = [m["receipt"] for m in ask(cluster, "pop", name, "--max=2")["messages"]]
    assert ask(cluster, "nack", name, receipts[0], "--delay=1h") == {"nacked": 1, "dead": []}
    assert said(cluster, "nack", name, receipts[1], "--dead") == ["1 given back, 1 of them dead"]
    assert said(cluster, "list", name, "--order=delayed")[1].split()[0] == first
    assert said(cluster, "list", name, "--order=dead")[1].split()[0] == second
    assert "phase       dead" in said(cluster, "get", name, second)
    assert said(cluster, "redrive", name) == ["1 put back"]
    assert ask(cluster, "redrive", name) == {"moved": 0}
    assert said(cluster, "cancel", name, second) == [f"{second} cancelled"]
    assert ask(cluster, "cancel", name, first) == {"id": first, "cancelled": True}


@pytest.mark.parametrize("order", ["ready", "grouped", "delayed", "in_flight", "dead"])
def test_every_order_is_listed_up_to_a_limit(cluster: Up, name: str, order: str) -> None:
    extras = {"grouped": ["--group=a"], "delayed": ["--delay=1h"]}.get(order, [])
    ids = feed(cluster, "1\n2\n3\n", name, "--lines", *extras)
    if order in ("in_flight", "dead"):
        receipts = [m["receipt"] for m in ask(cluster, "pop", name, "--max=3")["messages"]]
        if order == "dead":
            said(cluster, "nack", name, *receipts, "--dead")
    told = ask(cluster, "list", name, f"--order={order}")
    assert sorted(message["id"] for message in told["messages"]) == sorted(ids)
    assert told["more"] is False
    some = run(cluster, "list", name, f"--order={order}", "--limit=2")
    assert len(some.stdout.splitlines()) == 3
    assert some.stderr == "distsync: there are more; --limit 0 lists all\n"


# --- Queues ----------------------------------------------------------------------------------


def test_a_queue_is_configured_paused_and_resumed(cluster: Up, name: str) -> None:
    assert refused(cluster, "config", name, "--ttl=1h").endswith("(queue_not_found)\n")
    assert "queue_not_found" in refused(cluster, "config", name)
    config = ask(
        cluster,
        *("config", name, "--create", "--max-length=10", "--max-deliveries=3"),
        *("--dedupe-window=1m", "--ttl=1h", "--rate-count=5", "--rate-per=2s"),
    )
    assert config == {
        "max_length": 10,
        "max_deliveries": 3,
        "dedupe_window_ms": 60_000,
        "ttl_ms": 3_600_000,
        "rate_count": 5,
        "rate_per_ms": 2_000,
        "paused": False,
    }
    assert said(cluster, "config", name, "--ttl=0")[1].split() == (
        ["10", "3", "1m", "-", "5", "per", "2s", "open"]
    )
    assert ask(cluster, "config", name) == {**config, "ttl_ms": 0}

    said(cluster, "push", name, "x")
    assert said(cluster, "pause", name) == [f"{name} is paused"]
    assert run(cluster, "pop", name).returncode == 75
    row = said(cluster, "ls", name)[1].split()
    assert (row[:6], row[-1]) == ([name, "1", "0", "0", "0", "0"], "paused")
    assert ask(cluster, "resume", name)["paused"] is False
    assert said(cluster, "pop", name) == ["x"]


def test_queues_are_listed_and_counted(cluster: Up, name: str) -> None:
    names = [f"{name}/{number:02}" for number in range(12)]
    with Client(cluster.url) as client:
        for count, queue in enumerate(names, start=1):
            client.queue(queue).push_many(["x"] * count)
    told = ask(cluster, "ls", f"{name}/")["queues"]
    assert [queue["name"] for queue in told] == names
    assert [queue["stats"]["ready"] for queue in told] == list(range(1, 13))
    assert [line.split()[0] for line in said(cluster, "ls", f"{name}/")] == ["NAME", *names]
    assert said(cluster, "ls", f"{name}/", "--names") == names
    assert ask(cluster, "ls", f"{name}/0", "--names") == {"queues": names[:10]}
    table = said(cluster, "stats", names[1])
    assert table[1].split()[:2] == ["NOW", "MESSAGES"]
    assert table[2].split() == ["ready", "2", "pushed", "2"]
    assert "queue_not_found" in refused(cluster, "stats", f"{name}/none")


def test_a_purge_wants_a_yes(cluster: Up, name: str) -> None:
    feed(cluster, "1\n2\n3\n", name, "--lines")
    ended = run(cluster, "purge", name)
    assert (ended.returncode, ended.stdout) == (2, "")
    for answer, code in (("n", 1), ("y", 0)):
        status, seen = at_a_terminal(cluster, ["queue", "purge", name], "[y/N]", f"{answer}\n")
        assert f"Remove all messages of {name}?" in seen
        assert status == code, seen
    assert ask(cluster, "stats", name)["stats"]["purged"] == 3
    assert ask(cluster, "purge", name, "--dead", "--yes") == {"removed": 0}


def test_completion_offers_the_queues_that_exist(cluster: Up, name: str) -> None:
    said(cluster, "push", name, "x")
    assert completions("queue", "stats", name[:-3], url=cluster.url) == [name]


# --- Schedules -------------------------------------------------------------------------------


def test_a_schedule_is_listed_serves_its_times_and_is_removed(cluster: Up, name: str) -> None:
    every_second = "* * * * * *"
    told = ask(cluster, "schedule", name, "tick/tock", "--cron", every_second, "tick", "--ttl=1h")
    assert told["next_at_ms"] > 0
    assert {key: value for key, value in told.items() if key != "next_at_ms"} == {
        "id": "tick/tock",
        "cron": every_second,
        "timezone": "UTC",
        "body": "tick",
        "priority": 0,
        "ttl_ms": 3_600_000,
        "group": "",
    }
    for _ in range(2):
        assert said(cluster, "pop", name, "--wait=30s", "--ack") == ["tick"]
    (listed_one,) = ask(cluster, "schedules", name)["schedules"]
    assert listed_one["id"] == "tick/tock"
    assert listed_one["next_at_ms"] > told["next_at_ms"]
    assert completions("queue", "unschedule", name, "tick/", url=cluster.url) == ["tick/tock"]

    assert said(cluster, "unschedule", name, "tick/tock") == ["tick/tock is unscheduled"]
    assert said(cluster, "unschedule", name, "tick/tock") == ["there is no schedule tick/tock"]
    assert ask(cluster, "unschedule", name, "x") == {"id": "x", "deleted": False}
    assert ask(cluster, "schedules", name) == {"schedules": []}


def test_a_schedule_reads_its_body_and_says_when_it_is_due(
    cluster: Up, name: str, tmp_path: Path
) -> None:
    file = tmp_path / "body"
    file.write_text("from a\nfile")
    daily = ["--cron", "30 2 * * *", "--timezone", "Asia/Tokyo"]
    (line,) = said(cluster, "schedule", name, "a", *daily, "--file", str(file))
    assert re.fullmatch(r"a is due next at \d{4}-\d\d-\d\d 17:30:00\+00:00", line)
    said(cluster, "schedule", name, "b", *daily, "--priority=2", "--group=g", given="from input")
    heading, *rows = said(cluster, "schedules", name)
    assert heading.split() == (
        ["ID", "CRON", "TIME", "ZONE", "DUE", "NEXT", "PRIORITY", "GROUP", "TTL", "BODY"]
    )
    assert ["from a\\x0afile" in rows[0], "from input" in rows[1]] == [True, True]
    said(cluster, "schedule", name, "b", *daily, "instead")
    assert [s["body"] for s in ask(cluster, "schedules", name)["schedules"]] == [
        *("from a\nfile", "instead"),
    ]


def test_what_is_no_schedule_is_refused_in_one_line(cluster: Up, name: str, tmp_path: Path) -> None:
    file = tmp_path / "body"
    file.write_bytes(b"x" * (16 * 1024 + 1))
    assert "longer than 16 KiB" in refused(
        cluster, "schedule", name, "a", "--cron=* * * * *", "--file", str(file)
    )
    assert "cron: " in refused(cluster, "schedule", name, "a", "--cron=often", "x")
    assert "timezone: " in refused(
        cluster, "schedule", name, "a", "--cron=* * * * *", "--timezone=Nowhere", "x"
    )
    assert ask(cluster, "schedules", name) == {"schedules": []}


# --- Workers ---------------------------------------------------------------------------------


class Worker:
    """A running `distsync queue work`."""

    def __init__(self, cluster: Up, name: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "queue", "work", name, *arguments],
            env={**os.environ, "DISTSYNC_URL": cluster.url, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        """The next line that a command prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def said(self) -> str:
        """The next line that the worker, or a command, writes on stderr."""
        assert self.process.stderr is not None
        return self.process.stderr.readline()

    def event(self) -> dict[str, Any]:
        """The next event, with --output json."""
        return dict(json.loads(self.said()))

    def ended(self) -> tuple[int, str]:
        """Wait for its end; return its exit code and what it said."""
        _, stderr = self.process.communicate(timeout=60)
        return self.process.returncode, stderr

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: object) -> None:
        with self.process:
            self.process.kill()


def work(cluster: Up, name: str, *options: str, script: str) -> Worker:
    return Worker(cluster, name, *options, "--", "sh", "-c", script)


def test_a_command_has_the_message_and_acknowledges_it_by_its_exit(cluster: Up, name: str) -> None:
    (id,) = push(cluster, name, "hello")
    script = 'echo "$(cat) $DISTSYNC_QUEUE $DISTSYNC_MESSAGE_ID $DISTSYNC_DELIVERIES"'
    with work(cluster, name, script=script) as worker:
        assert worker.line() == f"hello {name} {id} 1"
        eventually(lambda: stats(cluster, name)["acked"] == 1)
        push(cluster, name, "again")
        assert worker.line().startswith(f"again {name} ")
        eventually(lambda: stats(cluster, name)["acked"] == 2)
        worker.process.terminate()
        assert worker.ended() == (0, "")


def test_a_large_message_need_not_be_read(cluster: Up, name: str, tmp_path: Path) -> None:
    push(cluster, name, *["x" * 256 * 1024] * 2)
    script = '[ -e "$0" ] && wc -c || { touch "$0"; echo ignored; }'
    arguments = ["--", "sh", "-c", script, str(tmp_path / "seen")]
    with Worker(cluster, name, *arguments) as worker:
        assert [worker.line(), worker.line()] == ["ignored", "262144"]
        eventually(lambda: stats(cluster, name)["acked"] == 2)


def test_after_another_exit_code_the_message_comes_again_later(cluster: Up, name: str) -> None:
    (id,) = push(cluster, name, "x")
    with work(cluster, name, script="echo $DISTSYNC_DELIVERIES; exit 1") as worker:
        assert worker.line() == "1"
        assert worker.said() == f"distsync: {name}, message {id}, delivery 1: exit code 1\n"
        assert [worker.line(), worker.line()] == ["2", "3"]
        eventually(lambda: stats(cluster, name)["delayed"] == 1)
        (info,) = listed(cluster, name, "delayed")
        assert info["due_at_ms"] > info["pushed_at_ms"] + 2_500  # 0.5 to 1 s, 1 to 2, 2 to 4
        worker.process.terminate()
        code, stderr = worker.ended()
    assert code == 0
    assert len(stderr.splitlines()) == 2
    assert stats(cluster, name)["acked"] == 0


def test_as_many_commands_run_as_was_said_and_a_second_signal_ends_them(
    cluster: Up, name: str
) -> None:
    push(cluster, name, "1", "2", "3", "4", "5")
    options = ["--concurrency=2", "--output=json"]
    with work(cluster, name, *options, script='echo "$(cat)"; exec sleep 60') as worker:
        assert {worker.line(), worker.line()} == {"1", "2"}
        assert stats(cluster, name)["in_flight"] == 2
        worker.process.terminate()
        assert worker.event() == {"event": "stopping", "queue": name, "running": 2}
        worker.process.terminate()
        assert [worker.event()["event"], worker.event()["event"]] == ["ended", "ended"]
        assert worker.ended() == (0, "")
    ready = listed(cluster, name)
    assert {m["body"]: m["deliveries"] for m in ready} == {"1": 1, "2": 1, "3": 0, "4": 0, "5": 0}


def test_a_claim_is_kept_for_as_long_as_the_command_runs(cluster: Up, name: str) -> None:
    push(cluster, name, "x")
    script = "echo begun; sleep 7; echo done"
    with work(cluster, name, "--visibility=6s", script=script) as worker:
        assert [worker.line(), worker.line()] == ["begun", "done"]
        eventually(lambda: stats(cluster, name)["acked"] == 1)
    assert stats(cluster, name)["delivered"] == 1


# For ever, or until these tests end: what outlives a worker that is killed must not outlive them.
FOR_EVER = f"echo $$; while kill -0 {os.getpid()}; do sleep 0.05; done"
DEAF_FAMILY = f"trap '' TERM; sh -c 'trap \"\" TERM; {FOR_EVER}' & {FOR_EVER}"


def test_a_purge_kills_the_command_and_all_it_started(cluster: Up, name: str) -> None:
    (id,) = push(cluster, name, "x")
    with work(cluster, name, "--visibility=6s", script=DEAF_FAMILY) as worker:
        family = [int(worker.line()), int(worker.line())]
        said(cluster, "purge", name, "--yes")
        lost = f"{name}, message {id}: the claim is lost: the cluster ended it"
        assert worker.said() == f"distsync: {lost}\n"
        eventually(lambda: not any(is_running(pid) for pid in family), within_seconds=10)
        push(cluster, name, "next")  # it goes on
        worker.line()
        eventually(lambda: stats(cluster, name)["in_flight"] == 1)


@pytest.mark.alone
def test_cut_off_from_the_cluster_a_command_ends_before_its_claim(cluster: Up, name: str) -> None:
    """The margin is a tenth of a second, which a slow machine may miss, but not each time."""
    push(cluster, name, "x")
    with work(cluster, name, "--visibility=4s", script=DEAF_FAMILY) as worker:
        took: list[float] = []
        for _ in range(3):
            family = [int(worker.line()), int(worker.line())]
            with stopped(cluster):
                stopped_at = time.monotonic()
                eventually(lambda pids=family: not any(is_running(pid) for pid in pids))
                took.append(time.monotonic() - stopped_at)
            # The claim was extended before the stop, so it lasts at most 4 s from there.
            if took[-1] < 4.0:
                break
        assert took[-1] < 4.0, took
        assert worker.line()  # it comes again
        assert stats(cluster, name)["delivered"] == len(took) + 1


@contextlib.contextmanager
def stopped(cluster: Up) -> Iterator[None]:
    """No node runs meanwhile."""
    for pid in cluster.pids.values():
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in cluster.pids.values():
            os.kill(pid, signal.SIGCONT)


def test_a_signal_lets_commands_end_and_claims_nothing_more(
    cluster: Up, name: str, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    push(cluster, name, "1")
    script = f'echo "$(cat)"; while [ ! -e {go} ]; do sleep 0.05; done; echo done'
    options = ["--concurrency=2", "--output=json"]
    with work(cluster, name, *options, script=script) as worker:
        assert worker.line() == "1"
        worker.process.terminate()
        assert worker.event()["event"] == "stopping"
        (left,) = push(cluster, name, "2")
        go.touch()
        assert worker.line() == "done"
        assert worker.event()["exit_code"] == 0
        assert worker.ended() == (0, "")
    assert stats(cluster, name)["acked"] == 1
    assert [(m["id"], m["deliveries"]) for m in listed(cluster, name)] == ([(left, 0)])


def test_a_command_that_outlives_the_grace_is_ended_and_its_message_given_back(
    cluster: Up, name: str
) -> None:
    (id,) = push(cluster, name, "x")
    with work(cluster, name, "--grace=300ms", "--output=json", script=DEAF_FAMILY) as worker:
        family = [int(worker.line()), int(worker.line())]
        worker.process.send_signal(signal.SIGINT)
        code, stderr = worker.ended()
    assert code == 0
    events = [json.loads(line) for line in stderr.splitlines()]
    assert [event["event"] for event in events] == ["stopping", "ended"]
    assert (events[1]["id"], events[1]["deliveries"]) == (id, 1)
    assert not any(is_running(pid) for pid in family)
    assert [m["id"] for m in listed(cluster, name)] == [id]


def test_commands_die_with_a_worker_that_is_killed(cluster: Up, name: str) -> None:
    push(cluster, name, "1", "2")
    script = "echo $$; exec sleep 60"
    with work(cluster, name, "--concurrency=2", "--visibility=2s", script=script) as worker:
        commands = [int(worker.line()), int(worker.line())]
        worker.process.kill()
    eventually(lambda: not any(is_running(pid) for pid in commands), within_seconds=10)
    messages = ask(cluster, "pop", name, "--max=2", "--wait=10s")["messages"]
    assert messages[0]["deliveries"] == 2


def test_commands_stop_with_the_worker_and_go_on_with_it(cluster: Up, name: str) -> None:
    push(cluster, name, "x")
    with work(cluster, name, script="echo $$; exec sleep 60") as worker:
        command = int(worker.line())
        worker.process.send_signal(signal.SIGTSTP)  # Ctrl-Z
        eventually(lambda: state_of(worker.process.pid) == state_of(command) == "T")
        worker.process.send_signal(signal.SIGCONT)
        eventually(lambda: "T" not in (state_of(worker.process.pid), state_of(command)))


def test_a_command_that_cannot_be_started_gives_the_message_back(
    cluster: Up, name: str, tmp_path: Path
) -> None:
    push(cluster, name, "x")
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nrm -f $0\necho ran\nexit 1\n")
    program.chmod(0o755)
    with Worker(cluster, name, "--output=json", "--", str(program)) as worker:
        assert worker.line() == "ran"
        assert worker.event()["exit_code"] == 1
        assert worker.said() == f"distsync: {program}: command not found\n"
        assert worker.event()["exit_code"] == 127


def test_at_a_terminal_ctrl_c_reaches_the_worker_alone(
    cluster: Up, name: str, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    push(cluster, name, "x")
    script = f"echo begun; while [ ! -e {go} ]; do sleep 0.05; done; echo done"
    with terminal(cluster, ["queue", "work", name, "--", "sh", "-c", script]) as (pid, screen):
        read_until(screen, "begun")
        os.write(screen, b"\x03")  # Ctrl-C
        read_until(screen, "a second signal ends them")
        go.touch()
        read_until(screen, "done")
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    assert stats(cluster, name)["acked"] == 1


# --- A terminal ------------------------------------------------------------------------------


@contextlib.contextmanager
def terminal(cluster: Up, arguments: list[str]) -> Iterator[tuple[int, int]]:
    """Run the command at a terminal of its own; yields its process id and the terminal."""
    pid, screen = pty.fork()
    if pid == 0:
        os.environ["DISTSYNC_URL"] = cluster.url
        os.execv(sys.executable, [*COMMAND, *arguments])
    try:
        yield pid, screen
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(screen)


def at_a_terminal(cluster: Up, arguments: list[str], question: str, answer: str) -> tuple[int, str]:
    with terminal(cluster, arguments) as (pid, screen):
        seen = read_until(screen, question)
        os.write(screen, answer.encode())
        _, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status), seen
