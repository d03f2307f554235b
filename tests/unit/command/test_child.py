"""Real processes: what `lock run` does with the command it runs."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distsync.command import parent
from distsync.command.child import Child
from process.running import eventually, is_running, state_of

LAUNCHER = Path(parent.__file__)


async def start(script: str, **environment: str) -> Child:
    return await Child.start(["sh", "-c", script], {**os.environ, **environment})


def written(file: Path) -> str:
    return eventually(lambda: file.exists() and file.read_text().strip())


async def test_the_exit_code_is_passed_on() -> None:
    child = await start("exit 7")
    assert await child.wait() == 7


async def test_a_death_by_signal_is_128_and_its_number() -> None:
    child = await start("kill -KILL $$")
    assert await child.wait() == 128 + signal.SIGKILL


async def test_the_environment_is_the_one_given(tmp_path: Path) -> None:
    child = await start('echo "$TOKEN" > "$OUT"', TOKEN="17", OUT=str(tmp_path / "out"))
    assert await child.wait() == 0
    assert (tmp_path / "out").read_text() == "17\n"


async def test_one_of_several_has_an_input_of_its_own_and_leaves_signals_to_us(
    tmp_path: Path,
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    given = tmp_path / "given"
    given.write_text("a message")
    out = tmp_path / "out"
    with given.open() as stdin:
        script = ["sh", "-c", f"cat > {out}; exit 3"]
        child = await Child.start_apart(script, os.environ, stdin.fileno())
    assert signal.getsignal(signal.SIGTERM) == before
    assert await child.wait() == 3
    assert out.read_text() == "a message"


async def test_a_command_is_stopped_and_goes_on(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = ["sh", "-c", f"echo $$ > {pid_file}; exec sleep 60"]
    with Path(os.devnull).open() as stdin:
        child = await Child.start_apart(script, os.environ, stdin.fileno())
    pid = int(await asyncio.to_thread(written, pid_file))

    child.stop()
    await asyncio.to_thread(eventually, lambda: state_of(pid) == "T")
    child.go_on()
    await asyncio.to_thread(eventually, lambda: state_of(pid) != "T")
    child.kill()
    assert await child.wait() == 128 + signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
async def test_signals_to_us_reach_the_command(tmp_path: Path, number: signal.Signals) -> None:
    ready = tmp_path / "ready"
    child = await start(
        f'trap "exit 42" {int(number)}; echo yes > {ready}; while :; do sleep 0.05; done'
    )
    await asyncio.to_thread(written, ready)
    os.kill(os.getpid(), number)
    assert await child.wait() == 42


async def test_after_the_command_signals_are_ours_again() -> None:
    before = signal.getsignal(signal.SIGTERM)
    child = await start("exit 0")
    await child.wait()
    assert signal.getsignal(signal.SIGTERM) == before


async def test_a_command_that_obeys_ends_by_sigterm(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    child = await start(f'trap "exit 5" TERM; echo yes > {ready}; while :; do sleep 0.05; done')
    await asyncio.to_thread(written, ready)
    began = time.monotonic()
    await child.end(30.0)
    assert time.monotonic() - began < 10
    assert await child.wait() == 5


async def test_a_command_that_does_not_obey_is_killed_after_the_grace(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    child = await start(f'trap "" TERM; echo yes > {ready}; while :; do sleep 0.05; done')
    await asyncio.to_thread(written, ready)
    await child.end(0.2)
    assert await child.wait() == 128 + signal.SIGKILL


async def test_what_the_command_started_is_ended_with_it(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    child = await start(f"sh -c 'trap \"\" TERM; echo $$ > {pid_file}; sleep 60' & wait")
    grandchild = int(await asyncio.to_thread(written, pid_file))
    await child.end(0.2)
    await asyncio.to_thread(eventually, lambda: not is_running(grandchild), within_seconds=10)


async def test_a_stopped_command_is_ended_too(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    child = await start(f"echo $$ > {pid_file}; kill -STOP $$")
    await asyncio.to_thread(written, pid_file)
    await child.end(5.0)
    assert await child.wait() == 128 + signal.SIGTERM


def test_the_command_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    program = (
        "import asyncio, os\n"
        "from distsync.command.child import Child\n"
        "async def main():\n"
        f"    script = 'echo $$ > {pid_file}; exec sleep 60'\n"
        "    child = await Child.start(['sh', '-c', script], os.environ)\n"
        "    await child.wait()\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        command = int(written(pid_file))
        assert is_running(command)
        process.kill()
    eventually(lambda: not is_running(command), within_seconds=10)


def test_the_launcher_ends_when_its_parent_is_gone_already() -> None:
    ended = subprocess.run([sys.executable, "-I", "-S", LAUNCHER, "1", "background", "echo", "ran"])
    assert ended.returncode == 128 + signal.SIGKILL


@pytest.mark.parametrize(
    ("command", "code"), [("/nonexistent/program", 127), ("/etc/passwd", 126), ("/tmp", 126)]
)
def test_the_launcher_reports_what_it_cannot_run_as_a_shell_does(command: str, code: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-I", "-S", LAUNCHER, str(os.getpid()), "background", command],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == code
    assert ended.stderr.startswith(f"distsync: {command}: ")
    assert ended.stderr.count("\n") == 1
