"""How the command ends: one line on stderr, and an exit code; no cluster is needed for that."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from process.running import COMMAND, completions, distsync, distsync_here

NOWHERE = "http://127.0.0.1:9"


Run: TypeAlias = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run the command in this process, in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return distsync_here(*arguments, env=environment)

    return run


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "No such command 'nonsense' (see distsync --help)"),
        (["status", "--nonsense"], "No such option '--nonsense'"),
        (["lock", "acquire"], "Missing argument 'NAME' (see distsync lock acquire --help)"),
        (["lock", "acquire", "a", "--ttl", "10"], "write 10s or 10ms"),
        (["lock", "acquire", "a", "--ttl", "1ms"], "1ms is below 100ms"),
        (["lock", "acquire", "a", "--limit", "0"], "'--limit'"),
        (["lock", "release", "a"], "--token is needed"),
        (["lock", "run", "a"], "Missing argument 'COMMAND...'"),
        (["lock", "run", "a", "ls", "-l"], "write -- before the command"),
        (["lock", "run", "a", "--nonsense", "--", "ls", "-l"], "No such option '--nonsense'"),
        (["queue", "push"], "Missing argument 'NAME' (see distsync queue push --help)"),
        (["queue", "push", "q", "x", "--stdin"], "BODY, --stdin and --file exclude each other"),
        (["queue", "push", "q", "-", "--file", "-"], "BODY, --stdin and --file exclude each other"),
        (["queue", "push", "q", "--file", "missing"], "'--file'"),
        (["queue", "push", "q", "x", "--delay", "10"], "write 10s or 10ms"),
        (["queue", "push", "q", "x", "--delay", "721h"], "721h is above 720h"),
        (["queue", "push", "q", "x", "--priority", "10"], "'--priority'"),
        (["queue", "push", "q", "--lines", "--dedupe-id", "d"], "would leave only the first line"),
        (["queue", "pop", "q", "--max", "101"], "'--max'"),
        (["queue", "ack", "q"], "Missing argument 'RECEIPT...'"),
        (["queue", "nack", "q"], "Missing argument 'RECEIPT...'"),
        (["queue", "get", "q"], "Missing argument 'ID'"),
        (["queue", "list", "q", "--order", "x"], "'ready', 'grouped', 'delayed', 'in_flight'"),
        (["queue", "config", "q", "--rate-per", "0"], "0 is below 1ms"),
        (["queue", "schedule", "q", "s", "x"], "Missing option '--cron'"),
        (["queue", "schedule", "q", "--cron", "* * * * *"], "Missing argument 'ID'"),
        (
            ["queue", "schedule", "q", "s", "x", "--stdin", "--cron", "* * * * *"],
            "BODY, --stdin and --file exclude each other",
        ),
        (["queue", "unschedule", "q"], "Missing argument 'ID'"),
        (["queue", "purge", "q"], "--yes is needed where nobody can be asked"),
        (["queue", "work", "q"], "Missing argument 'COMMAND...'"),
        (["queue", "work", "q", "ls", "-l"], "write -- before the command"),
        (["queue", "work", "q", "--visibility", "100ms", "--", "ls"], "100ms is below 1s"),
        (["member", "add", "x"], "'x' is not a URL such as http://127.0.0.1:8081"),
        (["member", "archive", "x"], "'x' is not a URL such as http://127.0.0.1:8081"),
        (["member", "add", "http://a:1,http://b:1"], "one URL is expected"),
        (["status", "--url", "localhost:8081"], "is not a URL such as http://127.0.0.1:8081"),
        (["up", "--nodes", "10"], "'--nodes'"),
        (["up", "--base-port", "65500"], "'--base-port'"),
        (["node"], "Missing option '--data-dir'"),
        (["status", "--output", "xml"], "'xml' is not one of 'table', 'json'"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(run: Run, arguments: list[str], said: str) -> None:
    ended = run(*arguments)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert said in ended.stderr
    assert ended.stderr.startswith("distsync: ")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["lock"], ["member"], ["queue"]])
def test_without_a_subcommand_the_help_is_shown_as_it_is(run: Run, arguments: list[str]) -> None:
    ended = run(*arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == run(*arguments, "--help").stdout


def test_a_cluster_that_does_not_answer_is_one_line_and_exit_code_1(
    run: Run,
) -> None:
    ended = run("status", "--url", NOWHERE)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        f"distsync: no node answers: no answer from {NOWHERE}/cluster/status: Connection refused\n"
    )


def test_a_lock_call_without_a_cluster_names_the_address_and_the_reason(run: Run) -> None:
    ended = run("lock", "show", "a", "--url", NOWHERE)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "127.0.0.1:9: Connection refused" in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [["lock", "show", "a"], ["status"]])
def test_a_name_that_nobody_knows_is_said_to_be_one(run: Run, command: list[str]) -> None:
    ended = run(*command, "--url", "http://no-such-host.invalid:1")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert re.search("name|DNS|resol", ended.stderr.replace("no-such-host", ""), re.IGNORECASE)
    assert "Unknown error" not in ended.stderr


def test_a_command_that_does_not_exist_takes_no_lock(run: Run) -> None:
    ended = run("lock", "run", "a", "--", "no-such-program", DISTSYNC_URL=NOWHERE)
    assert ended.returncode == 127
    assert ended.stderr == "distsync: no-such-program: command not found\n"


def test_a_file_that_is_no_program_takes_no_lock(run: Run) -> None:
    ended = run("lock", "run", "a", "--", "/etc/passwd", DISTSYNC_URL=NOWHERE)
    assert ended.returncode == 126


def test_a_queue_call_without_a_cluster_names_the_address_and_the_reason(run: Run) -> None:
    ended = run("queue", "push", "a", "x", "--url", NOWHERE)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "127.0.0.1:9: Connection refused" in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(("command", "code"), [("no-such-program", 127), ("/etc/passwd", 126)])
def test_a_command_that_cannot_be_run_claims_no_message(run: Run, command: str, code: int) -> None:
    ended = run("queue", "work", "a", "--", command, DISTSYNC_URL=NOWHERE)
    assert ended.returncode == code
    assert ended.stderr.startswith(f"distsync: {command}: ")


def test_an_administrator_without_a_secret_is_told_so(run: Run) -> None:
    ended = run("member", "remove", "node-1", DISTSYNC_URL=NOWHERE)
    assert ended.returncode == 2
    assert "--secret-file" in ended.stderr
    missing = run("member", "remove", "x", "--secret-file", "missing")
    assert missing.returncode == 2
    assert missing.stderr == (
        "distsync: cannot read the secret file missing: No such file or directory\n"
    )


def test_a_node_without_a_secret_is_told_so(tmp_path: Path) -> None:
    ended = distsync("node", f"--data-dir={tmp_path}/d", f"--secret-file={tmp_path}/missing")
    assert ended.returncode == 2
    assert ended.stderr.startswith("distsync: ")
    assert ended.stderr.count("\n") == 1


def test_a_node_whose_packages_are_missing_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "uvicorn.py").write_text("raise ModuleNotFoundError('no uvicorn', name='uvicorn')")
    ended = distsync(
        "node",
        f"--data-dir={tmp_path}/d",
        f"--secret-file={tmp_path}/secret",
        env={"PYTHONPATH": str(tmp_path)},
    )
    assert ended.returncode == 2
    assert "pip install 'distsync[node]'" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_the_environment_names_the_cluster_and_the_option_wins(run: Run) -> None:
    other = "http://127.0.0.1:19"
    assert NOWHERE in run("status", DISTSYNC_URL=NOWHERE).stderr
    assert other in run("--url", other, "status", DISTSYNC_URL=NOWHERE).stderr
    assert other in run("status", "--url", other, DISTSYNC_URL=NOWHERE).stderr
    assert other in run("--url", NOWHERE, "status", "--url", other).stderr


def test_a_bad_environment_is_wrong_usage_too(run: Run) -> None:
    ended = run("status", DISTSYNC_URL="nonsense")
    assert ended.returncode == 2
    assert "nonsense" in ended.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(run: Run, shell: str) -> None:
    ended = run("completion", shell)
    assert ended.returncode == 0
    assert "_DISTSYNC_COMPLETE" in ended.stdout


def complete(*words: str) -> list[str]:
    return completions(*words, url=NOWHERE)


def test_completion_offers_commands_and_is_silent_without_a_cluster() -> None:
    commands = {"status", "lock", "member", "node", "queue", "ring", "up", "completion", "cache"}
    assert commands == set(complete(""))
    assert "acquire" in complete("lock", "a")
    assert complete("lock", "show", "ord") == []
    assert complete("queue", "p") == ["pause", "peek", "pop", "purge", "push"]
    assert complete("queue", "list", "q", "--order", "del") == ["delayed"]
    assert complete("queue", "stats", "em") == []
    assert complete("queue", "unschedule", "q", "night") == []
    assert complete("queue", "schedule", "q", "s", "--timezone", "Europe/Berl") == ["Europe/Berlin"]
    assert complete("cache", "s") == ["set", "stats"]
    assert complete("cache", "get", "us") == []


def test_help_names_every_command(run: Run) -> None:
    ended = run("--help")
    assert ended.returncode == 0
    for name in ("cache", "completion", "lock", "member", "node", "queue", "ring", "status", "up"):
        assert name in ended.stdout


def test_the_version_is_the_one_installed(run: Run) -> None:
    assert run("--version").stdout == "distsync 0.1.0\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    process = subprocess.Popen(
        [*COMMAND, "completion", "bash"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    _, stderr = process.communicate(timeout=30)
    assert stderr == b""
