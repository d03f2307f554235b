"""Generated requests against both ports: no 5xx, and every answer as the document says."""

from __future__ import annotations

import msgspec
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from distsync_node.api.app import build_peer_app, build_public_app
from distsync_node.api.call import mint_request_id
from distsync_node.api.options import ApiOptions
from distsync_node.locks.commands import (
    Acquire,
    Cancel,
    Expire,
    KeepAlive,
    LockCommand,
    RaiseTokens,
    Renew,
    RequestKey,
    Upgrade,
)
from distsync_node.services.interface import CommandReply
from unit.api.local_node import LocalNode

SECRET = "a shared secret"
OPTIONS = ApiOptions(body_timeout_ms=1_000, disconnect_check_ms=1, watch_keep_alive_ms=5)
LONGEST_WAIT_MS = 3

CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    checks.positive_data_acceptance,
    checks.missing_required_header,
    checks.unsupported_method,
]


class ImpatientNode(LocalNode):
    """Waits are cut short, as generated ones last minutes; and no two requests are the same, as
    examples all have the same request id."""

    async def submit(self, command: LockCommand, *, timeout_ms: int) -> CommandReply:
        if not isinstance(command, Renew | KeepAlive | Cancel | RaiseTokens | Expire):
            key = RequestKey(client=command.key.client, request=mint_request_id())
            command = msgspec.structs.replace(command, key=key)
        if isinstance(command, Acquire | Upgrade) and command.wait_ms > LONGEST_WAIT_MS:
            command = msgspec.structs.replace(command, wait_ms=LONGEST_WAIT_MS)
        return await super().submit(command, timeout_ms=timeout_ms)


PUBLIC_APP = build_public_app(ImpatientNode(), node_name="node-1", options=OPTIONS)
PEER_APP = build_peer_app(ImpatientNode(), SECRET, {}, node_name="node-1", options=OPTIONS)
# A watch has no end: one event shows its shape.
ONE_EVENT = schemathesis.Config.from_dict({"max-stream-events": 1})
public = schemathesis.openapi.from_asgi("/openapi.json", PUBLIC_APP, config=ONE_EVENT)
peer = schemathesis.openapi.from_asgi(
    "/openapi.json", PEER_APP, headers={"authorization": f"Bearer {SECRET}"}
)
few = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


# Queues and cache want a Redis; without one every call is a 503. Those are tested as processes.
@public.exclude(tag=["queues", "cache"]).parametrize()
@few
def test_public_port_conforms_to_its_document(case: schemathesis.Case) -> None:
    case.call_and_validate(checks=CHECKS)


@peer.parametrize()
@few
def test_peer_port_conforms_to_its_document(case: schemathesis.Case) -> None:
    case.call_and_validate(checks=CHECKS, headers={"authorization": f"Bearer {SECRET}"})
