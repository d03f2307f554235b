"""What the operator is told by its environment: DISTSYNC_OPERATOR_<NAME>."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from distsync_operator.errors import OperatorError
from distsync_operator.resources.common import Defaults

_PREFIX = "DISTSYNC_OPERATOR_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`namespaces` are those whose resources are looked after; none named: all of them.

    `namespace` is where the operator runs and keeps its Lease; `pod` names it in the Lease.
    """

    node_image: str
    redis_image: str
    namespace: str
    pod: str
    namespaces: tuple[str, ...] = ()
    lease: str = "distsync-operator"
    port: int = 8080
    log_level: str = "info"

    @property
    def defaults(self) -> Defaults:
        """What is filled in where a resource says nothing."""
        return Defaults(
            image=self.node_image,
            redis_image=self.redis_image,
            operator_namespace=self.namespace,
        )


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Read the environment.

    Raises:
        OperatorError: something is missing or is no number.
    """

    def text(name: str, default: str | None = None) -> str:
        value = environment.get(_PREFIX + name) or default
        if value is None:
            raise OperatorError(f"{_PREFIX}{name} is not set")
        return value

    try:
        port = int(text("PORT", "8080"))
    except ValueError:
        raise OperatorError(f"{_PREFIX}PORT is no number") from None
    named = environment.get(_PREFIX + "WATCH_NAMESPACES", "")
    return Settings(
        node_image=text("NODE_IMAGE"),
        redis_image=text("REDIS_IMAGE"),
        namespace=text("NAMESPACE"),
        pod=text("POD"),
        namespaces=tuple(name.strip() for name in named.split(",") if name.strip()),
        lease=text("LEASE", "distsync-operator"),
        port=port,
        log_level=text("LOG_LEVEL", "info"),
    )
