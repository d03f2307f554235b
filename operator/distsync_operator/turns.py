"""Whose turn it is when a new version of the operator changes the pods of every cluster.

One cluster at a time: the next begins when the one before is done, so that a version that does not
work stops at the first. A cluster that is not well before its turn says nothing about the version,
and may never be well: it comes last, and nobody waits for it. Neither does anybody for a cluster
that was done once, whatever befalls it later. One that nobody has looked at may be under way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Standing = Literal["unknown", "waiting", "unwell", "rolling", "done"]


@dataclass(slots=True)
class _Cluster:
    name: str
    standing: Standing = "unknown"


class Turns:
    """Which clusters there are, by uid, and how far each has got."""

    def __init__(self) -> None:
        self._clusters: dict[str, _Cluster] = {}

    def know(self, uid: str, name: str) -> None:
        """There is a cluster."""
        self._clusters.setdefault(uid, _Cluster(name))

    def forget(self, uid: str) -> None:
        """The cluster is gone."""
        self._clusters.pop(uid, None)

    def before(self, uid: str, *, is_well: bool) -> str:
        """Return the name of a cluster whose turn is before this one's, '' if this one may begin,
        or has begun."""
        mine = self._clusters[uid].standing
        ahead = {"unknown", "rolling"}
        if not is_well and mine != "rolling":
            ahead.add("waiting")
        others = (one for other, one in self._clusters.items() if other != uid)
        return next((one.name for one in others if one.standing in ahead), "")

    def saw(self, uid: str, *, is_upgrade: bool, is_well: bool, is_busy: bool) -> None:
        """A pass has looked: whether this version has something to change here, which it does if it
        may begin, whether all is well, and whether anything is under way."""
        cluster = self._clusters[uid]
        if not is_upgrade:
            if not is_busy:
                cluster.standing = "done"
            elif cluster.standing != "done":
                cluster.standing = "rolling"
        elif self.before(uid, is_well=is_well):
            cluster.standing = "waiting" if is_well else "unwell"
        elif cluster.standing != "rolling":
            cluster.standing = "rolling" if is_well else "done"

    def skip(self, uid: str) -> None:
        """Nothing will be changed here for now."""
        self._clusters[uid].standing = "done"
