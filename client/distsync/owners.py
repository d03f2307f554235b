"""On whose behalf locks are taken.

The owner is the node of the cluster's wait-for graph and is not re-entrant. By default each asyncio
task, and each thread of a `Client`, is an owner of its own: so a deadlock between tasks is found,
also across processes, and a task that waits for what it holds itself is told so.

An owner may leave a ghost: a grant that it does not hold any more, but that the cluster still knows
(`ghosts`). To the cluster the next request of the same owner for that lock would look like a
deadlock. So an owner that is nobody's by name can be renewed: from then on the task goes under
another one.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from distsync.identity import Identity

__all__ = ["FixedOwner", "OneOwner", "Owners", "TaskOwners"]


class Owners(Protocol):
    """Where the owner of a request comes from."""

    @property
    def can_renew(self) -> bool:
        """Whether `renew` returns another owner."""
        ...

    def current(self) -> str:
        """Return the owner."""
        ...

    def renew(self) -> str:
        """Return another owner, the current one from now on, if it is free to change."""
        ...


class FixedOwner:
    """An owner that the user named."""

    can_renew = False

    def __init__(self, owner: str) -> None:
        self._owner = owner

    def current(self) -> str:
        """Return the owner."""
        return self._owner

    def renew(self) -> str:
        """Return the same owner: it is not ours to change."""
        return self._owner


class OneOwner:
    """An owner of this client, whichever it is: of a thread, or of an election."""

    can_renew = True

    def __init__(self, identity: Identity, prefix: str = "") -> None:
        self._identity = identity
        self._prefix = prefix
        self._owner = ""

    def current(self) -> str:
        """Return the owner."""
        return self._owner or self.renew()

    def renew(self) -> str:
        """Return another owner, the current one from now on."""
        self._owner = self._prefix + self._identity.new_owner()
        return self._owner


class TaskOwners:
    """Each task is an owner of its own."""

    can_renew = True

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._of_task: WeakKeyDictionary[asyncio.Task[Any], str] = WeakKeyDictionary()

    def current(self) -> str:
        """Return the owner of the current task."""
        task = asyncio.current_task()
        return (self._of_task.get(task) if task is not None else None) or self.renew()

    def renew(self) -> str:
        """Make the current task another owner, and return it."""
        owner = self._identity.new_owner()
        if (task := asyncio.current_task()) is not None:
            self._of_task[task] = owner
        return owner
