"""Where Redis is, as one URL.

    redis://[[user]:password@]host[:port][/database]
    rediss://...                                        the same over TLS
    unix://[[user]:password@]/path/to/socket[?db=0]     redis+unix:// is the same
    redis+sentinel://[[user]:password@]host[:port][,host[:port]...]/service[/database]
    redis+cluster://[[user]:password@]host[:port][,host[:port]...]
    rediss+sentinel://, rediss+cluster://               the same over TLS

Options in the query: `ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile` (paths), `ssl_cert_reqs`
(required, none), `ssl_check_hostname` (true, false), `sentinel_username`, `sentinel_password`,
`replicas` (how many replicas must have a write before it is acknowledged, by WAIT).
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from distsync_node.errors import StartupError
from distsync_node.redis_link.link import Credentials, Endpoint

_TLS_OPTIONS: Final = {
    "ssl_ca_certs",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_cert_reqs",
    "ssl_check_hostname",
}
_OPTIONS: Final = _TLS_OPTIONS | {"db", "sentinel_username", "sentinel_password", "replicas"}


class Kind(Enum):
    """How the servers stand to each other."""

    SINGLE = auto()
    SENTINEL = auto()
    CLUSTER = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisAddress:
    """A parsed URL. `endpoints` are the servers, sentinels or nodes it names."""

    kind: Kind
    endpoints: tuple[Endpoint, ...]
    credentials: Credentials
    service: str = ""
    sentinel_credentials: Credentials = field(default_factory=Credentials)
    replicas: int = 0

    def __str__(self) -> str:
        where = ",".join(str(endpoint) for endpoint in self.endpoints)
        return f"{where} ({self.service})" if self.service else where


def parse_redis_url(url: str) -> RedisAddress:
    """Return what a URL says.

    Raises:
        StartupError: it is none, said without its password.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise StartupError("--redis: give a URL such as redis://host:6379/0")
    transport, _, variant = scheme.partition("+")
    if scheme in ("unix", "redis+unix"):
        return _parse_unix(rest)
    if transport not in ("redis", "rediss") or variant not in ("", "sentinel", "cluster"):
        raise StartupError(
            f"--redis: {scheme}:// is not known; use redis, rediss, unix, redis+sentinel or"
            " redis+cluster"
        )
    kind = {"": Kind.SINGLE, "sentinel": Kind.SENTINEL, "cluster": Kind.CLUSTER}[variant]
    username, password, hosts, path, options = _split(rest)
    if kind is Kind.SINGLE and "," in hosts:
        raise StartupError("--redis: redis:// names one host; see redis+sentinel, redis+cluster")
    tls = _tls_context(options) if transport == "rediss" else None
    if tls is None and _TLS_OPTIONS & options.keys():
        raise StartupError("--redis: ssl options need rediss://")
    port = 26379 if kind is Kind.SENTINEL else 6379
    endpoints = tuple(_endpoint(host, port) for host in hosts.split(","))
    service, database = _service_and_database(kind, path)
    return RedisAddress(
        kind=kind,
        endpoints=endpoints,
        credentials=Credentials(username=username, password=password, database=database, tls=tls),
        service=service,
        sentinel_credentials=Credentials(
            username=options.get("sentinel_username", ""),
            password=options.get("sentinel_password", ""),
            tls=tls,
        ),
        replicas=_number(options.get("replicas", "0"), "replicas"),
    )


def _parse_unix(rest: str) -> RedisAddress:
    username, password, hosts, path, options = _split(rest)
    if hosts or not path:
        raise StartupError("--redis: a unix socket is unix:///path/to/socket")
    database = _number(options.get("db", "0"), "db")
    return RedisAddress(
        kind=Kind.SINGLE,
        endpoints=(Endpoint(path=path),),
        credentials=Credentials(username=username, password=password, database=database),
        replicas=_number(options.get("replicas", "0"), "replicas"),
    )


def _split(rest: str) -> tuple[str, str, str, str, dict[str, str]]:
    parts = urlsplit(f"//{rest}")
    userinfo, _, hosts = parts.netloc.rpartition("@")
    username, _, password = userinfo.partition(":")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = ", ".join(sorted(options.keys() - _OPTIONS))
    if unknown:
        raise StartupError(f"--redis: unknown option {unknown}")
    return unquote(username), unquote(password), hosts, unquote(parts.path), options


def _endpoint(host_and_port: str, default_port: int) -> Endpoint:
    parts = urlsplit(f"//{host_and_port}")
    try:
        port = parts.port or default_port
    except ValueError:
        raise StartupError(f"--redis: {host_and_port} has no valid port") from None
    if not parts.hostname:
        raise StartupError("--redis: the URL names no host")
    return Endpoint(host=parts.hostname, port=port)


def _service_and_database(kind: Kind, path: str) -> tuple[str, int]:
    names = [name for name in path.split("/") if name]
    service = ""
    if kind is Kind.SENTINEL:
        if not names:
            raise StartupError("--redis: redis+sentinel:// needs the service, as /mymaster")
        service = names.pop(0)
    if len(names) > 1 or (kind is Kind.CLUSTER and names):
        raise StartupError(f"--redis: /{'/'.join(names)} is not a database")
    return service, _number(names[0], "the database") if names else 0


def _number(text: str, what: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise StartupError(f"--redis: {what} must be a number")
    return int(text)


def _tls_context(options: dict[str, str]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs") or None)
        if options.get("ssl_certfile"):
            context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    except (OSError, ssl.SSLError) as error:
        raise StartupError(f"--redis: cannot load the certificates: {error}") from None
    if options.get("ssl_check_hostname", "true").lower() in ("false", "0", "no"):
        context.check_hostname = False
    if options.get("ssl_cert_reqs", "required") == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
