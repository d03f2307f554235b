"""What fails round after round is told in the log once."""

from __future__ import annotations

import logging

from distsync_node.errors import DistSyncError

logger = logging.getLogger(__name__)


class Complaints:
    """What failed in this round, and in the last one."""

    def __init__(self) -> None:
        self._last: set[str] = set()
        self._this: set[str] = set()

    def tell(self, what: str, error: Exception) -> None:
        """Log it, unless it was told in this round or failed in the last one."""
        if what not in self._last | self._this:
            unforeseen = None if isinstance(error, DistSyncError) else error
            logger.warning("%s: %s", what, error, exc_info=unforeseen)
        self._this.add(what)

    def next_round(self) -> None:
        """Begin the next round."""
        self._last, self._this = self._this, set()
