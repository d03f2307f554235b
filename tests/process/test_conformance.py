"""Generated requests against the queue and cache endpoints of a real node with a real Redis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from distsync_node.api.cache_operations import CACHE_OPERATIONS
from distsync_node.api.queue_operations import QUEUE_OPERATIONS
from process.cluster import ready_cluster
from redis_server import RedisServer

LONGEST_WAIT_MS = 3

CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    checks.missing_required_header,
    checks.unsupported_method,
]


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory, redis: RedisServer) -> Iterator[Any]:
    options = ["--redis", redis.url]
    with ready_cluster(tmp_path_factory.mktemp("node"), nodes=1, options=options) as cluster:
        yield schemathesis.openapi.from_url(f"{cluster.urls[0]}/openapi.json")


@pytest.mark.parametrize("operation", [one.id for one in (*QUEUE_OPERATIONS, *CACHE_OPERATIONS)])
def test_endpoints_conform_to_their_document(document: Any, operation: str) -> None:
    strategy = document.find_operation_by_id(operation).as_strategy()

    @settings(
        max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(case=strategy)
    def conforms(case: schemathesis.Case) -> None:
        body: Any = case.body
        if isinstance(body, dict) and isinstance(body.get("wait_ms"), int | float):
            body["wait_ms"] = min(body["wait_ms"], LONGEST_WAIT_MS)  # generated ones last minutes
        elif isinstance(body, dict) and operation == "compute_value":
            body.setdefault("wait_ms", LONGEST_WAIT_MS)  # the default is 10 s
        case.call_and_validate(checks=CHECKS)

    conforms()
