"""Why a read was not served from the line here, for counting."""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum
from typing import Final

BYTES_A_NOTE: Final = 1 << 14
"""One line that is gone is remembered for so many bytes of lines, as its key takes room too."""


class Miss(Enum):
    """Why there was no hit."""

    ABSENT = "absent"  # it was never here, or that was long ago
    INVALIDATED = "invalidated"  # another node has written it
    EVICTED = "evicted"  # it went for want of room
    EXPIRED = "expired"  # its time to live is over
    NO_LEASE = "no_lease"  # its lease or its home was gone
    ON_ITS_WAY = "on_its_way"  # it has been asked for already


class Gone:
    """Why lines are here no longer: the last so many, by key."""

    __slots__ = ("_most", "_why")

    def __init__(self, max_bytes: int) -> None:
        self._most = max_bytes // BYTES_A_NOTE
        self._why: OrderedDict[str, Miss] = OrderedDict()

    def note(self, key: str, why: Miss) -> None:
        """A line goes."""
        self._why[key] = why
        self._why.move_to_end(key)
        if len(self._why) > self._most:
            self._why.popitem(last=False)

    def take(self, key: str) -> Miss:
        """Return why a key's line is not here, and forget it: its next miss has another reason."""
        return self._why.pop(key, Miss.ABSENT)
