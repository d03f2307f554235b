"""What a node may be told; everything else is one line before anything is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distsync_node.addresses import is_optional_client_url, is_peer_url
from distsync_node.errors import StartupError
from distsync_node.ring import DEFAULT_VIRTUAL_NODES
from distsync_node.settings import Settings, parse_members, read_redis_url, read_secret


def settings(**changes: Any) -> Settings:
    return Settings(**{"name": "n1", "data_dir": Path("d"), "secret": "s", **changes})


@pytest.mark.parametrize(
    "address",
    [
        "http://node-1",
        "http://node-1.svc.cluster.local.:8180",
        "http://10.0.0.1:65535",
        "http://[::1]:8180",
        "http://[2001:db8::7]/",
    ],
)
def test_addresses_of_peers(address: str) -> None:
    assert is_peer_url(address)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "node-1:8180",
        "http://",
        "http://a..b",
        f"http://{'a' * 64}",
        "http://a:0",
        "http://a:65536",
        "http://[::1::2]",
        "http://[1.1]",
        "http://a\n",
        "http://a b",
        "https://a",  # nodes talk plain HTTP to each other
        "http://a/path",
    ],
)
def test_what_no_peer_can_be_reached_at(address: str) -> None:
    assert not is_peer_url(address)
    with pytest.raises(StartupError, match="no address for other nodes"):
        settings(members=(("n1", "http://n1"), ("n2", address)))


def test_two_members_have_two_addresses() -> None:
    with pytest.raises(StartupError, match="two members one address"):
        settings(members=(("n1", "http://n:1"), ("n2", "http://n:1")))


def test_addresses_for_clients_may_have_a_path_or_be_unknown() -> None:
    assert is_optional_client_url("https://example.com/distsync")
    assert is_optional_client_url("")
    assert not is_optional_client_url("ftp://example.com")
    with pytest.raises(StartupError, match="no address"):
        settings(client_url="https://example.com:99999")


@pytest.mark.parametrize(
    ("host", "peer_url"),
    [
        ("0.0.0.0", "http://127.0.0.1:8180"),
        ("::", "http://127.0.0.1:8180"),
        ("::1", "http://[::1]:8180"),
        ("10.0.0.7", "http://10.0.0.7:8180"),
    ],
)
def test_the_address_told_to_others_follows_from_where_it_listens(host: str, peer_url: str) -> None:
    assert settings(host=host).advertised_peer_url == peer_url


def test_the_listed_address_counts_unless_another_is_given() -> None:
    listed = (("n1", "http://listed:1"), ("n2", "http://other:1"))
    assert settings(members=listed).advertised_peer_url == "http://listed:1"
    given = settings(members=listed, peer_url="http://given:1/")
    assert given.advertised_peer_url == "http://given:1"


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": "n" * 254},
        {"name": "a\r\nb"},
        {"secret": ""},
        {"secret": "two\nlines"},
        {"voters": 4},
        {"election_timeout_ms": 399},
        {"members": (("n1", "http://a"), ("n1", "http://b"))},
        {"members": (("n2", "http://a"),)},
    ],
    ids=str,
)
def test_wrong_settings_are_one_line(wrong: dict[str, Any]) -> None:
    with pytest.raises(StartupError) as error:
        settings(**wrong)
    assert "\n" not in str(error.value)


def test_members_are_read_from_one_text() -> None:
    assert parse_members("a=http://a/, b=http://b,") == (("a", "http://a"), ("b", "http://b"))
    with pytest.raises(StartupError, match="name=peer_url"):
        parse_members("a=http://a,b")


def test_a_secret_file_that_cannot_be_read_or_is_empty_is_a_startup_error(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    with pytest.raises(StartupError, match="cannot read"):
        read_secret(file)
    file.write_text("\n")
    with pytest.raises(StartupError, match="is empty"):
        read_secret(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(StartupError, match="cannot read"):
        read_secret(file)
    file.write_text("s3cret\n")
    assert read_secret(file) == "s3cret"


def test_the_url_of_redis_may_be_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "url"
    assert read_redis_url("", None) == ""
    assert read_redis_url("redis://one", None) == "redis://one"
    with pytest.raises(StartupError, match="cannot read the URL of Redis"):
        read_redis_url("", file)
    file.write_text("\n")
    with pytest.raises(StartupError, match="the file is empty"):
        read_redis_url("", file)
    file.write_text("redis://:password@two:6379/0\n")
    assert read_redis_url("", file) == "redis://:password@two:6379/0"
    with pytest.raises(StartupError, match="not both"):
        read_redis_url("redis://one", file)


@pytest.mark.parametrize("number", [0, 4_097])
def test_virtual_nodes_are_bounded(number: int) -> None:
    assert settings().virtual_nodes == DEFAULT_VIRTUAL_NODES
    with pytest.raises(StartupError, match="--virtual-nodes must be 1 to 4096"):
        settings(virtual_nodes=number)
