"""Configuration of a node; every field can be given as an option or as DISTSYNC_<NAME>."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from distsync_node.addresses import is_optional_client_url, is_peer_url
from distsync_node.errors import StartupError

MIN_HEARTBEATS_PER_ELECTION = 4
MAX_VIRTUAL_NODES = 4_096
DURABILITIES = ("mirrored", "local", "write_through")
LEAST_CACHE_BYTES = 1 << 20
MOST_CACHE_BYTES = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a node is told when it starts; durations are milliseconds.

    `members` is a static list of (name, peer_url), this node included. Empty: the node waits to be
    bootstrapped or added by someone else (an operator). With `bootstrap` the first-listed node
    creates the cluster once every listed node answers that it has none; without it the list only
    serves to join a cluster that exists.
    """

    name: str
    data_dir: Path
    secret: str
    host: str = "127.0.0.1"
    port: int = 8080
    peer_port: int = 8180
    peer_url: str = ""
    client_url: str = ""
    members: tuple[tuple[str, str], ...] = ()
    bootstrap: bool = True
    voters: int = 7
    virtual_nodes: int = 160  # of a cluster that has none yet
    heartbeat_ms: int = 100
    election_timeout_ms: int = 400  # the minimum; the maximum is twice that
    drain_ms: int = 0  # how long a stopping node goes on forwarding after it became unready
    redis_url: str = ""  # of queues and cache; empty: this node has none
    cache_max_bytes: int = 64 << 20
    cache_durability: str = "mirrored"
    cache_durability_by_prefix: tuple[tuple[str, str], ...] = ()
    log_level: str = "info"
    access_log: bool = False

    def __post_init__(self) -> None:
        if not 1 <= len(self.name) <= 253 or not self.name.isprintable():
            raise StartupError("--name must be 1 to 253 printable characters")
        if not self.secret or not self.secret.isprintable():
            raise StartupError("the shared secret must be one line of printable characters")
        if self.voters not in (1, 3, 5, 7):
            raise StartupError("--voters must be 1, 3, 5 or 7")
        if not 1 <= self.virtual_nodes <= MAX_VIRTUAL_NODES:
            raise StartupError(f"--virtual-nodes must be 1 to {MAX_VIRTUAL_NODES}")
        if self.election_timeout_ms < MIN_HEARTBEATS_PER_ELECTION * self.heartbeat_ms:
            raise StartupError(
                f"--election-timeout must be at least {MIN_HEARTBEATS_PER_ELECTION} heartbeats"
                f" ({MIN_HEARTBEATS_PER_ELECTION * self.heartbeat_ms} ms)"
            )
        self._check_cache()
        names = [name for name, _ in self.members]
        if len(set(names)) != len(names):
            raise StartupError("--members names a member twice")
        if len({url for _, url in self.members}) != len(names):
            raise StartupError("--members gives two members one address")
        if self.members and self.name not in names:
            raise StartupError(f"--members does not list this node ({self.name})")
        for url in (self.advertised_peer_url, *(url for _, url in self.members)):
            if not is_peer_url(url):
                raise StartupError(f"{url!r} is no address for other nodes like http://host:port")
        if not is_optional_client_url(self.advertised_client_url):
            raise StartupError(
                f"{self.advertised_client_url!r} is no address like http://host:port"
            )

    def _check_cache(self) -> None:
        if not LEAST_CACHE_BYTES <= self.cache_max_bytes <= MOST_CACHE_BYTES:
            raise StartupError("--cache-max-bytes must be 1 MiB to 1 TiB")
        for mode in (self.cache_durability, *dict(self.cache_durability_by_prefix).values()):
            if mode not in DURABILITIES:
                raise StartupError(f"{mode!r} is none of {', '.join(DURABILITIES)}")
        prefixes = [prefix for prefix, _ in self.cache_durability_by_prefix]
        if len(set(prefixes)) != len(prefixes):
            raise StartupError("--cache-durability-of names a prefix twice")

    @property
    def advertised_peer_url(self) -> str:
        """Where other nodes reach this one."""
        listed = dict(self.members).get(self.name, "")
        return (self.peer_url or listed or f"http://{self._reachable}:{self.peer_port}").rstrip("/")

    @property
    def advertised_client_url(self) -> str:
        """Where clients reach this node."""
        return (self.client_url or f"http://{self._reachable}:{self.port}").rstrip("/")

    @property
    def _reachable(self) -> str:
        if self.host in ("0.0.0.0", "::"):
            return "127.0.0.1"
        return f"[{self.host}]" if ":" in self.host else self.host


def read_secret(path: Path) -> str:
    """Return the shared secret in a file.

    Raises:
        StartupError: the file cannot be read or is empty.
    """
    return _read_line(path, "the shared secret")


def read_redis_url(url: str, path: Path | None) -> str:
    """Return where Redis is: `url`, or what the file says; empty without either.

    Raises:
        StartupError: both are given, or the file cannot be read or is empty.
    """
    if path is None:
        return url
    if url:
        raise StartupError("give --redis or --redis-file, not both")
    return _read_line(path, "the URL of Redis")


def _read_line(path: Path, what: str) -> str:
    try:
        content = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StartupError(f"cannot read {what}: {error}") from error
    if not content:
        raise StartupError(f"{what} is not in {path}: the file is empty")
    return content


def parse_members(text: str) -> tuple[tuple[str, str], ...]:
    """Read `name=peer_url,name=peer_url`.

    Raises:
        StartupError: an item is not of that form.
    """
    members = []
    for item in text.split(","):
        if not item.strip():
            continue
        name, separator, url = item.strip().partition("=")
        if not separator or not name or not url:
            raise StartupError(f"--members wants name=peer_url,..., not {item.strip()!r}")
        members.append((name, url.rstrip("/")))
    return tuple(members)


def parse_durabilities(texts: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Read `PREFIX=MODE` each; the last = counts.

    Raises:
        StartupError: one is not of that form.
    """
    found = []
    for text in texts:
        prefix, separator, mode = text.rpartition("=")
        if not separator or not prefix or mode not in DURABILITIES:
            raise StartupError(
                f"--cache-durability-of wants PREFIX=MODE with a MODE of {', '.join(DURABILITIES)},"
                f" not {text!r}"
            )
        found.append((prefix, mode))
    return tuple(found)
