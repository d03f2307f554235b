"""Where Redis is, as one URL."""

from __future__ import annotations

import pytest

from distsync_node.errors import StartupError
from distsync_node.redis_link.address import Kind, parse_redis_url
from distsync_node.redis_link.link import Endpoint


def test_one_server() -> None:
    address = parse_redis_url("redis://cache.example:7000/3")
    assert address.kind is Kind.SINGLE
    assert address.endpoints == (Endpoint(host="cache.example", port=7000),)
    assert (address.credentials.database, address.credentials.tls) == (3, None)


def test_defaults() -> None:
    address = parse_redis_url("redis://localhost")
    assert address.endpoints == (Endpoint(host="localhost", port=6379),)
    assert (address.credentials.database, address.replicas) == (0, 0)


def test_user_and_password_may_have_any_characters() -> None:
    credentials = parse_redis_url("redis://us%40er:p%3Aa%2Fs@host/0").credentials
    assert (credentials.username, credentials.password) == ("us@er", "p:a/s")
    assert "p:a/s" not in repr(credentials)
    assert parse_redis_url("redis://:only@host").credentials.password == "only"


def test_ipv6() -> None:
    assert parse_redis_url("redis://[::1]:6380").endpoints == (Endpoint(host="::1", port=6380),)


@pytest.mark.parametrize("scheme", ["unix", "redis+unix"])
def test_unix_sockets(scheme: str) -> None:
    address = parse_redis_url(f"{scheme}://:secret@/run/redis/r.sock?db=2&replicas=1")
    assert address.endpoints == (Endpoint(path="/run/redis/r.sock"),)
    assert address.credentials.password == "secret"
    assert (address.credentials.database, address.replicas) == (2, 1)


def test_tls() -> None:
    context = parse_redis_url("rediss://host").credentials.tls
    assert context is not None
    assert context.check_hostname
    lax = parse_redis_url("rediss://host?ssl_cert_reqs=none").credentials.tls
    assert lax is not None
    assert not lax.check_hostname


def test_sentinels() -> None:
    address = parse_redis_url(
        "redis+sentinel://:pw@s1,s2:26380/mymaster/1?sentinel_password=other&replicas=2"
    )
    assert address.kind is Kind.SENTINEL
    assert address.endpoints == (Endpoint(host="s1", port=26379), Endpoint(host="s2", port=26380))
    assert (address.service, address.credentials.database) == ("mymaster", 1)
    assert address.sentinel_credentials.password == "other"
    assert address.replicas == 2


def test_a_cluster() -> None:
    address = parse_redis_url("redis+cluster://a:7001,b:7002")
    assert address.kind is Kind.CLUSTER
    assert [str(one) for one in address.endpoints] == ["a:7001", "b:7002"]


@pytest.mark.parametrize(
    "url",
    [
        "localhost:6379",
        "http://localhost",
        "redis+magic://localhost",
        "redis://",
        "redis://host/x",
        "redis://host/1/2",
        "redis://host:port",
        "redis://host:70000",
        "redis://a,b",
        "redis://host?ssl_ca_certs=/x",
        "redis://host?unknown=1",
        "rediss://host?ssl_ca_certs=/does/not/exist",
        "redis+sentinel://host",
        "redis+cluster://host/1",
        "redis://host?replicas=many",
        "unix://",
        "unix://host/path",
    ],
)
def test_a_url_that_cannot_be_is_refused_in_one_line(url: str) -> None:
    with pytest.raises(StartupError) as refused:
        parse_redis_url(url)
    assert str(refused.value).startswith("--redis: ")
    assert "\n" not in str(refused.value)


def test_a_refusal_does_not_show_the_password() -> None:
    with pytest.raises(StartupError) as refused:
        parse_redis_url("redis://user:s3cret@host/x")
    assert "s3cret" not in str(refused.value)
