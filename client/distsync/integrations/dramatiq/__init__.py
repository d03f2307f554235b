"""dramatiq on DistSync: an application changes the line that makes its broker.

    import dramatiq
    from distsync.integrations.dramatiq import DistSyncBroker

    dramatiq.set_broker(DistSyncBroker("http://127.0.0.1:8081"))

Actors, middleware, results and the command `dramatiq` stay as they are; see `DistSyncBroker`.
"""

from __future__ import annotations

try:
    import dramatiq as _needed  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "dramatiq":
        raise
    raise ImportError(
        "distsync.integrations.dramatiq needs dramatiq: pip install 'distsync[dramatiq]'"
    ) from None

from distsync.integrations.dramatiq.broker import DistSyncBroker

__all__ = ["DistSyncBroker"]
