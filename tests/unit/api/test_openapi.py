from __future__ import annotations

import inspect
from typing import Any

import httpx
import jsonschema_rs
import pytest
from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR

from distsync_node import errors
from distsync_node.api.app import build_public_app
from distsync_node.api.gateway import Gateway
from distsync_node.api.openapi import build_document
from distsync_node.api.operations import PEER_OPERATIONS, PUBLIC_OPERATIONS
from distsync_node.errors import DistSyncError

PUBLIC = build_document(PUBLIC_OPERATIONS, title="public", description="")
PEER = build_document(PEER_OPERATIONS, title="peer", description="", has_secret=True)
DOCUMENTS = {"public": PUBLIC, "peer": PEER}
NOT_DESCRIBED = {"/openapi.json", "/docs", "/docs/oauth2-redirect"}


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def errors_of_schema(document: dict[str, Any], schema: dict[str, Any], value: Any) -> list[str]:
    root = {**schema, "components": document["components"]}
    return [str(error) for error in jsonschema_rs.validator_for(root).iter_errors(value)]


@pytest.mark.parametrize("port", DOCUMENTS)
def test_document_is_valid_openapi(port: str) -> None:
    OPENAPI_31_VALIDATOR.validate(DOCUMENTS[port])


async def test_public_document_is_served(client: httpx.AsyncClient) -> None:
    served = (await client.get("/openapi.json")).json()
    assert served["paths"] == PUBLIC["paths"]
    assert (await client.get("/docs")).status_code == 200


async def test_peer_document_is_served(admin: httpx.AsyncClient) -> None:
    assert (await admin.get("/openapi.json")).json()["paths"] == PEER["paths"]


def test_every_public_route_is_described(app: Gateway) -> None:
    routes = {(one.route, one.method.lower()) for one in app.metrics()}
    described = {(path, method) for path, method, _ in operations(PUBLIC)}
    served = {(path, method) for path, method in routes if path.startswith("/")}
    assert {one for one in served if one[0] not in NOT_DESCRIBED} == described


def test_every_peer_route_is_described(peer_app: Gateway) -> None:
    routes = {(one.route, one.method.lower()) for one in peer_app.metrics()}
    described = {(path, method) for path, method, _ in operations(PEER)}
    served = {(path, method) for path, method in routes if path.startswith("/")}
    assert {one for one in served if one[0] not in NOT_DESCRIBED} == described


@pytest.mark.parametrize("port", DOCUMENTS)
def test_every_answer_has_an_example_that_fits_its_schema(port: str) -> None:
    document = DOCUMENTS[port]
    for path, method, operation in operations(document):
        for status, response in operation["responses"].items():
            for content in response["content"].values():
                assert content["examples"], (path, method, status)
                for example in content["examples"].values():
                    found = errors_of_schema(document, content["schema"], example["value"])
                    assert not found, (path, method, status, found)


@pytest.mark.parametrize("port", DOCUMENTS)
def test_every_body_has_an_example_that_fits_its_schema(port: str) -> None:
    document = DOCUMENTS[port]
    bodies = [
        (path, operation["requestBody"]["content"]["application/json"])
        for path, _, operation in operations(document)
        if "requestBody" in operation
    ]
    assert bodies
    for path, content in bodies:
        assert content["examples"], path
        for example in content["examples"].values():
            found = errors_of_schema(document, content["schema"], example["value"])
            assert not found, (path, found)


@pytest.mark.parametrize("port", DOCUMENTS)
def test_problem_examples_have_the_status_they_stand_under(port: str) -> None:
    for _, _, operation in operations(DOCUMENTS[port]):
        for status, response in operation["responses"].items():
            problem = response["content"].get("application/problem+json")
            for code, example in (problem or {"examples": {}})["examples"].items():
                assert example["value"]["status"] == int(status)
                assert example["value"]["code"] == code


def test_every_error_is_documented_somewhere() -> None:
    documented = {
        code
        for document in DOCUMENTS.values()
        for _, _, operation in operations(document)
        for response in operation["responses"].values()
        for content in response["content"].values()
        for code in content["examples"]
    }
    bases = {"internal", "conflict", "unavailable"}  # never raised as such
    without_an_operation = {"not_found", "method_not_allowed", "malformed_request"}
    known = {
        kind.code
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, DistSyncError)
    }
    assert known - bases - without_an_operation <= documented


def test_every_call_of_the_cache_that_needs_redis_says_that_it_may_be_full() -> None:
    """Also what only reads: a home leaves its epoch in Redis, for which there may be no room."""
    paths = {
        ("get", "/cache/{key}"),
        ("put", "/cache/{key}"),
        ("delete", "/cache/{key}"),
        ("delete", "/cache/{key}/compute"),
        ("post", "/cache/compute"),
        ("post", "/cache/invalidate_tag"),
    }
    told = {
        (method, path)
        for path, method, operation in operations(PUBLIC)
        if path.startswith("/cache") and "507" in operation["responses"]
    }
    assert told == paths


def test_operations_have_distinct_ids() -> None:
    for document in DOCUMENTS.values():
        ids = [operation["operationId"] for _, _, operation in operations(document)]
        assert len(set(ids)) == len(ids)


async def test_unsupported_methods_of_documented_paths_are_refused(app: Gateway) -> None:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://node.test") as client:
        for path, methods in PUBLIC["paths"].items():
            answer = await client.request("PATCH", path.replace("{name}", "x").replace("{id}", "x"))
            assert answer.status_code == 405
            assert {one.upper() for one in methods} <= set(answer.headers["allow"].split(", "))


def test_documents_do_not_depend_on_the_node() -> None:
    class Nothing:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"asked for {name} while being built")

    build_public_app(Nothing(), node_name="node-1")  # type: ignore[arg-type]
