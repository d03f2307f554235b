"""An operator that dies of SIGKILL before and after whatever it does, once each.

What it died of is in the file that DISTSYNC_TEST_DEATHS names, a line each; whoever starts it again
gets further by one. A call that goes to several nodes it also dies of in between.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from distsync_operator import worker
from distsync_operator.execute import describe, execute
from distsync_operator.main import main
from distsync_operator.nodes import Nodes

DEATHS = Path(os.environ["DISTSYNC_TEST_DEATHS"])
DIES_OF = os.environ["DISTSYNC_TEST_DIES_OF"]


def die_once(moment: str) -> None:
    """Die here, unless it happened already."""
    if DIES_OF in moment and moment not in DEATHS.read_text().splitlines():
        with DEATHS.open("a") as file:
            file.write(f"{moment}\n")
        os.kill(os.getpid(), signal.SIGKILL)


async def mortal_execute(action: Any, *rest: Any) -> Any:
    """Carry an action out."""
    die_once(f"before: {describe(action)}")
    answer = await execute(action, *rest)
    die_once(f"after: {describe(action)}")
    return answer


class MortalNodes(Nodes):
    """Calls to nodes."""

    async def bootstrap(self, *call: Any) -> None:
        """Create the cluster on a node."""
        await super().bootstrap(*call)
        die_once("amid: create the cluster")


if __name__ == "__main__":
    worker.execute = mortal_execute
    worker.Nodes = MortalNodes  # type: ignore[misc]
    main()
