"""Every scenario in transcripts/ goes exactly as it is written there.

After a change that is meant to alter the protocol, write the transcripts anew with
`PYTHONPATH=tests python tests/unit/raft/test_transcripts.py`, and read the difference.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from unit.raft.transcript import replay

TRANSCRIPTS = sorted((Path(__file__).parent / "transcripts").glob("*.txt"))


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_goes_as_written(path: Path) -> None:
    written = path.read_text()
    assert replay(written) == written


def test_the_scenarios_are_there() -> None:
    assert len(TRANSCRIPTS) >= 8


if __name__ == "__main__":
    for transcript in TRANSCRIPTS:
        transcript.write_text(replay(transcript.read_text()))
