"""The program around a node: how it ends."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from distsync_node import main
from distsync_node.services.formation import Formation
from distsync_node.settings import Settings

DEADLINE_SECONDS = 60


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """The program takes the signals of this process; give them back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def settings(tmp_path: Path) -> Settings:
    ports = []
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as free:
            ports.append(free.getsockname()[1])
    return Settings(
        name="n1", data_dir=tmp_path / "data", secret="s", port=ports[0], peer_port=ports[1]
    )


async def test_it_ends_with_0_when_it_is_told_to(tmp_path: Path) -> None:
    program = main._Program(settings(tmp_path))
    running = asyncio.create_task(program.run())
    program._stop.set()
    assert await asyncio.wait_for(running, DEADLINE_SECONDS) == 0


async def test_it_ends_with_3_when_it_can_no_longer_look_for_its_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(_self: Formation) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(Formation, "run", fails)
    assert await asyncio.wait_for(main._Program(settings(tmp_path)).run(), DEADLINE_SECONDS) == 3
