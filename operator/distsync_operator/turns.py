"""Whose turn it is when a new version of the operator changes the pods of every cluster.

One cluster at a time: the next begins when the one before is done, so that a version that does not
work stops at the first. A cluster whose state is not known yet counts as one that is under way.
"""

from __future__ import annotations


class Turns:
    """Which clusters there are, by uid, and which of them replace pods now."""

    def __init__(self) -> None:
        self._is_rolling: dict[str, bool | None] = {}

    def know(self, uid: str) -> None:
        """There is a cluster."""
        self._is_rolling.setdefault(uid, None)

    def saw(self, uid: str, *, is_rolling: bool) -> None:
        """A pass has seen whether pods of the cluster are being replaced."""
        self._is_rolling[uid] = is_rolling

    def forget(self, uid: str) -> None:
        """The cluster is gone."""
        self._is_rolling.pop(uid, None)

    def may_begin(self, uid: str) -> bool:
        """Whether this cluster may begin to replace its pods."""
        others = {one: state for one, state in self._is_rolling.items() if one != uid}
        return all(state is False for state in others.values())
