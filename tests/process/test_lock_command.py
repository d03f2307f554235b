"""`distsync lock` against three real nodes."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from process.running import (
    COMMAND,
    Up,
    acquire,
    distsync,
    eventually,
    is_running,
    lock_state,
    read_until,
    running_cluster,
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_cluster(tmp_path_factory.mktemp("lock-command") / "cluster") as up:
        yield up


@pytest.fixture
def name() -> str:
    return f"orders/{uuid4().hex[:8]}"


def ask(cluster: Up, *arguments: str) -> Any:
    ended = distsync(*arguments, "--output", "json", url=cluster.url)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def run_in_background(cluster: Up, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "lock", "run", *arguments],
        env={**os.environ, "DISTSYNC_URL": cluster.url},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def holders(cluster: Up, name: str) -> list[dict[str, Any]]:
    return lock_state(cluster.urls[0], name)["holders"]


def test_a_lock_is_taken_shown_and_given_back(cluster: Up, name: str) -> None:
    grant = ask(cluster, "lock", "acquire", name, "--ttl", "1m", "--owner", "me")
    assert (grant["name"], grant["owner"], grant["mode"]) == (name, "me", "exclusive")
    assert 50_000 < grant["expires_in_ms"] <= 60_000

    shown = ask(cluster, "lock", "show", name)
    assert [(h["owner"], h["token"]) for h in shown["holders"]] == [("me", grant["token"])]
    listed = ask(cluster, "lock", "ls", name[:10])["locks"]
    assert [lock["name"] for lock in listed] == [name]
    table = distsync("lock", "ls", name, url=cluster.url).stdout.splitlines()
    assert table[0].split()[:2] == ["NAME", "MODE"]
    assert table[1].split()[:2] == [name, "exclusive"]

    refused = distsync("lock", "acquire", name, url=cluster.url)
    assert refused.returncode == 1
    assert refused.stderr == (
        f"distsync: {name} is held by me; --wait 10s would wait for it (lock_held)\n"
    )
    waited = distsync("lock", "acquire", name, "--wait", "200ms", url=cluster.url)
    assert waited.returncode == 1
    assert waited.stderr == f"distsync: {name} is held by me (wait_timeout)\n"

    released = distsync("lock", "release", name, f"--token={grant['token']}", url=cluster.url)
    assert (released.returncode, released.stdout) == (0, f"{name} released\n")
    assert distsync("lock", "show", name, url=cluster.url).stdout == f"{name} is free\n"
    again = distsync("lock", "release", name, f"--token={grant['token']}", url=cluster.url)
    assert again.returncode == 1
    assert "not_holder" in again.stderr


def test_a_semaphore_has_as_many_permits_as_its_limit(cluster: Up, name: str) -> None:
    for _ in range(2):
        assert ask(cluster, "lock", "acquire", name, "--limit", "2")["mode"] == "shared"
    assert distsync("lock", "acquire", name, "--limit", "2", url=cluster.url).returncode == 1
    assert len(holders(cluster, name)) == 2
    mismatch = distsync("lock", "acquire", name, "--limit", "3", url=cluster.url)
    assert "limit_mismatch" in mismatch.stderr


def test_a_forced_release_needs_the_secret_and_leaves_a_log_line(cluster: Up, name: str) -> None:
    acquire(cluster.urls[0], name)
    force = ("lock", "release", name, "--force")
    wrong = cluster.data_dir.with_name("wrong-secret")
    wrong.write_text("guess\n")
    refused = distsync(*force, f"--secret-file={wrong}", url=cluster.url)
    assert refused.returncode == 1
    assert "unauthorized" in refused.stderr
    assert len(holders(cluster, name)) == 1

    done = distsync(*force, f"--secret-file={cluster.secret_file}", url=cluster.url)
    assert done.returncode == 0, done.stderr
    assert holders(cluster, name) == []
    logs = "".join(log.read_text() for log in cluster.data_dir.glob("*.log"))
    lines = [json.loads(line) for line in logs.splitlines() if name in line]
    assert [(line["action"], line["result"]) for line in lines] == [("force_release", "done")]

    again = distsync(*force, f"--secret-file={cluster.secret_file}", url=cluster.url)
    assert (again.returncode, again.stderr) == (1, f"distsync: {name} is not held (not_holder)\n")


def test_an_administrator_raises_the_tokens(cluster: Up, name: str) -> None:
    above = acquire(cluster.urls[0], name) + 1_000
    secret = f"--secret-file={cluster.secret_file}"
    assert ask(cluster, "lock", "raise-tokens", str(above), secret) == {"above": above}
    assert acquire(cluster.urls[1], f"{name}-2") == above + 1


def test_watch_prints_each_change_as_a_line(cluster: Up, name: str) -> None:
    with subprocess.Popen(
        [*COMMAND, "lock", "watch", name, "--output", "json"],
        env={**os.environ, "DISTSYNC_URL": cluster.url},
        stdout=subprocess.PIPE,
        text=True,
    ) as watching:
        assert watching.stdout is not None
        assert json.loads(watching.stdout.readline())["holders"] == []
        token = acquire(cluster.urls[0], name)
        assert json.loads(watching.stdout.readline())["token"] == token
        distsync("lock", "release", name, f"--token={token}", url=cluster.url)
        assert json.loads(watching.stdout.readline())["holders"] == []
        watching.send_signal(signal.SIGINT)
        assert watching.wait(timeout=30) == 130


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("exit 255", 255)]
)
def test_run_passes_the_exit_code_on(cluster: Up, name: str, script: str, code: int) -> None:
    ended = distsync("lock", "run", name, "--", "sh", "-c", script, url=cluster.url)
    assert (ended.returncode, ended.stderr) == (code, "")
    assert holders(cluster, name) == []


def test_run_tells_the_command_what_it_holds(cluster: Up, name: str) -> None:
    script = "echo $DISTSYNC_LOCK_NAME $DISTSYNC_LOCK_TOKEN $DISTSYNC_LOCK_OWNER"
    ended = distsync("lock", "run", name, "--owner=cron", "--", "sh", "-c", script, url=cluster.url)
    told_name, token, owner = ended.stdout.split()
    assert (told_name, owner) == (name, "cron")
    assert acquire(cluster.urls[0], name) > int(token)


def test_run_passes_standard_input_and_output_through(cluster: Up, name: str) -> None:
    ended = subprocess.run(
        [*COMMAND, "lock", "run", name, "--", "tr", "a-z", "A-Z"],
        env={**os.environ, "DISTSYNC_URL": cluster.url},
        input="through",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.stdout == "THROUGH"


def test_run_does_not_start_the_command_without_the_lock(
    cluster: Up, name: str, tmp_path: Path
) -> None:
    acquire(cluster.urls[0], name)
    ran = tmp_path / "ran"
    for wait in ("0", "300ms"):
        ended = distsync(
            "lock", "run", name, "--wait", wait, "--", "touch", str(ran), url=cluster.url
        )
        assert ended.returncode == 75
        assert ended.stderr.splitlines()[-1].startswith(
            f"distsync: the command was not started: {name} is held by somebody"
        )
    assert not ran.exists()


def test_run_waits_for_the_lock_and_says_for_whom(cluster: Up, name: str) -> None:
    token = acquire(cluster.urls[0], name)
    with run_in_background(cluster, name, "--", "echo", "ran") as waiting:
        assert waiting.stderr is not None
        assert waiting.stderr.readline() == (f"distsync: waiting for {name}, held by somebody\n")
        distsync("lock", "release", name, f"--token={token}", url=cluster.url)
        out, _ = waiting.communicate(timeout=30)
    assert (waiting.returncode, out) == (0, "ran\n")


def test_a_signal_while_it_waits_ends_the_wait(cluster: Up, name: str) -> None:
    acquire(cluster.urls[0], name)
    with run_in_background(cluster, name, "--", "true") as waiting:
        eventually(lambda: lock_state(cluster.urls[0], name)["waiter_count"] == 1)
        waiting.terminate()
        assert waiting.wait(timeout=30) == 143
    eventually(lambda: lock_state(cluster.urls[0], name)["waiter_count"] == 0)


def test_run_holds_the_lock_beyond_its_ttl(cluster: Up, name: str) -> None:
    ended = distsync("lock", "run", name, "--ttl", "3s", "--", "sleep", "5", url=cluster.url)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_run_passes_signals_on(cluster: Up, name: str) -> None:
    script = 'trap "exit 42" TERM; echo ready; while :; do sleep 0.05; done'
    with run_in_background(cluster, name, "--", "sh", "-c", script) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        running.terminate()
        assert running.wait(timeout=30) == 42
    assert holders(cluster, name) == []


def test_run_ends_the_command_when_the_lock_is_forced_from_it(cluster: Up, name: str) -> None:
    script = 'trap "" TERM; echo $$; while :; do sleep 0.05; done'
    with run_in_background(
        cluster, name, "--ttl=1s", "--grace=100ms", "--", "sh", "-c", script
    ) as running:
        assert running.stdout is not None
        command = int(running.stdout.readline())
        distsync(
            "lock",
            "release",
            name,
            "--force",
            f"--secret-file={cluster.secret_file}",
            url=cluster.url,
        )
        _, stderr = running.communicate(timeout=30)
    assert running.returncode == 76
    assert "lock_lost" in stderr
    assert stderr.count("\n") == 1
    assert not is_running(command)


def test_the_command_dies_with_a_run_that_is_killed(cluster: Up, name: str) -> None:
    with run_in_background(cluster, name, "--", "sh", "-c", "echo $$; exec sleep 60") as running:
        assert running.stdout is not None
        command = int(running.stdout.readline())
        running.kill()
    eventually(lambda: not is_running(command), within_seconds=10)


@pytest.mark.alone
def test_cut_off_from_the_cluster_the_command_ends_before_the_lease(
    tmp_path: Path, name: str
) -> None:
    with running_cluster(tmp_path / "cluster", nodes=1) as up:
        token_file = tmp_path / "token"
        script = f"echo $DISTSYNC_LOCK_TOKEN > {token_file}; echo $$; exec sleep 60"
        with run_in_background(up, name, "--ttl=3s", "--", "sh", "-c", script) as running:
            assert running.stdout is not None
            command = int(running.stdout.readline())
            os.kill(up.pids["node-1"], signal.SIGSTOP)
            stopped_at = time.monotonic()
            eventually(lambda: not is_running(command), within_seconds=10)
            # The lease was renewed before the stop, so it lasts at most 3 s from there.
            assert time.monotonic() - stopped_at < 3.0
            assert running.wait(timeout=30) == 76
        os.kill(up.pids["node-1"], signal.SIGCONT)


def test_at_a_terminal_the_command_is_in_the_foreground(cluster: Up, name: str) -> None:
    script = "read line; echo got $line; trap 'echo caught; exit 9' INT; echo again; read line"
    os.environ["DISTSYNC_URL"] = cluster.url
    try:
        pid, terminal = pty.fork()
        if pid == 0:
            os.execv(sys.executable, [*COMMAND, "lock", "run", name, "--", "sh", "-c", script])
    finally:
        del os.environ["DISTSYNC_URL"]
    try:
        os.write(terminal, b"hello\n")
        read_until(terminal, "again")
        os.write(terminal, b"\x03")  # Ctrl-C
        read_until(terminal, "caught")
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 9
    finally:
        os.close(terminal)


def test_ctrl_z_stops_the_whole_job_and_fg_continues_it(cluster: Up, name: str) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["PS1"] = "$ "
        os.environ["DISTSYNC_URL"] = cluster.url
        os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])
    try:
        command = "sh -c 'echo up; read x; echo $x$x'"
        line = f"{' '.join(COMMAND)} lock run {name} --ttl=1m -- {command}\n"
        os.write(terminal, line.encode())
        read_until(terminal, "up\r\n")
        os.write(terminal, b"\x1a")  # Ctrl-Z
        read_until(terminal, "Stopped")
        os.write(terminal, b"echo still-$((40 + 2))\n")
        read_until(terminal, "still-42")
        os.write(terminal, b"fg\n")
        read_until(terminal, "lock run")
        os.write(terminal, b"ab\n")
        read_until(terminal, "abab")
        os.write(terminal, b"echo code-$?; exit\n")
        read_until(terminal, "code-0")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)
