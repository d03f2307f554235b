"""A Redis over TLS: whom it trusts and who it says it is, on a real server."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from distsync_node.errors import RedisUnavailable
from distsync_node.queues.store import QueueStore
from distsync_node.queues.types import NewMessage
from process.running import reserved_port
from redis_server import RedisServer

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="openssl, which makes the certificates, is not here"
)


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and a key with a certificate that it has signed, for 127.0.0.1."""
    directory = Path(tmp_path_factory.mktemp("certificates"))
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    ca = (str(directory / "ca.crt"), str(directory / "ca.key"))
    openssl(
        *("req", "-x509", *key, "-days", "2", "-subj", "/CN=authority"),
        *("-keyout", ca[1], "-out", ca[0]),
    )
    request, names = directory / "redis.csr", directory / "names"
    names.write_text("subjectAltName=IP:127.0.0.1")
    openssl(
        *("req", *key, "-subj", "/CN=redis"),
        *("-keyout", str(directory / "redis.key"), "-out", str(request)),
    )
    openssl(
        *("x509", "-req", "-in", str(request), "-days", "2", "-extfile", str(names)),
        *("-CA", ca[0], "-CAkey", ca[1], "-CAcreateserial", "-out", str(directory / "redis.crt")),
    )
    return directory


@pytest.fixture(scope="module")
def url(certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that wants a certificate of whoever comes, and its URL without any."""
    port = reserved_port()
    options = {
        "tls-port": str(port),
        "tls-cert-file": str(certificates / "redis.crt"),
        "tls-key-file": str(certificates / "redis.key"),
        "tls-ca-cert-file": str(certificates / "ca.crt"),
    }
    with RedisServer(Path(tmp_path_factory.mktemp("redis")), options=options):
        yield f"rediss://127.0.0.1:{port}/0"


def trusting(certificates: Path) -> str:
    return f"ssl_ca_certs={certificates / 'ca.crt'}"


def named(certificates: Path) -> str:
    return f"ssl_certfile={certificates / 'redis.crt'}&ssl_keyfile={certificates / 'redis.key'}"


async def works(url: str) -> bool:
    store = await QueueStore.open(url)
    try:
        pushed = await store.push("q", (NewMessage(body=b"1"),))
        return len(pushed.ids) == 1
    finally:
        await store.close()


async def test_with_an_authority_and_a_certificate(url: str, certificates: Path) -> None:
    assert await works(f"{url}?{trusting(certificates)}&{named(certificates)}")


async def test_who_the_server_is_may_be_left_open_where_that_is_wanted(
    url: str, certificates: Path
) -> None:
    assert await works(f"{url}?ssl_cert_reqs=none&{named(certificates)}")


async def refusal(url: str) -> str:
    """Why nothing is pushed. It is 503: a certificate may be mended, and the node goes on."""
    store = await QueueStore.open(url, patience_s=2.0)
    try:
        with pytest.raises(RedisUnavailable) as refused:
            await store.push("q", (NewMessage(body=b"1"),))
        return str(refused.value)
    finally:
        await store.close()


async def test_a_server_whose_authority_is_not_known_is_not_used(
    url: str, certificates: Path
) -> None:
    assert "certificate verify failed" in await refusal(f"{url}?{named(certificates)}")


async def test_a_server_of_another_name_is_not_used(url: str, certificates: Path) -> None:
    elsewhere = url.replace("127.0.0.1", "localhost")
    told = await refusal(f"{elsewhere}?{trusting(certificates)}&{named(certificates)}")
    assert "not valid for 'localhost'" in told
