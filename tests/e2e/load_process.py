"""The load program as a process of this machine, for nodes that run here."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).parent / "load_program.py"
SETTLE_SECONDS = 120


class LoadProcess:
    """Load on the nodes at `url`, named after its output; an async context manager."""

    def __init__(self, url: str, output: Path) -> None:
        self._output = output
        with output.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, PROGRAM, output.stem],
                env={**os.environ, "DISTSYNC_URL": url},
                stdout=file,
            )

    @property
    def has_started(self) -> bool:
        """Whether it is at work."""
        return "started" in self._output.read_text()

    async def __aenter__(self) -> LoadProcess:
        while not self.has_started and self._process.poll() is None:
            await asyncio.sleep(0.05)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    async def settle(self) -> dict[str, Any]:
        """End it; return what it tells."""
        self._process.terminate()
        code = await asyncio.to_thread(self._process.wait, SETTLE_SECONDS)
        if code != 0:
            raise RuntimeError(f"the load ended with {code}")
        return dict(json.loads(self._output.read_text().splitlines()[-1]))
