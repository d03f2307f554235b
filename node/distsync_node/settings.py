"""Configuration of a node; every field can be given as an option or as DISTSYNC_<NAME>."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distsync_node.addresses import is_optional_client_url, is_peer_url
from distsync_node.errors import StartupError

MIN_HEARTBEATS_PER_ELECTION = 4


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
    heartbeat_ms: int = 100
    election_timeout_ms: int = 400  # the minimum; the maximum is twice that
    drain_ms: int = 0  # how long a stopping node goes on forwarding after it became unready
    log_level: str = "info"
    access_log: bool = False

    def __post_init__(self) -> None:
        if not 1 <= len(self.name) <= 253 or not self.name.isprintable():
            raise StartupError("--name must be 1 to 253 printable characters")
        if not self.secret or not self.secret.isprintable():
            raise StartupError("the shared secret must be one line of printable characters")
        if self.voters not in (1, 3, 5, 7):
            raise StartupError("--voters must be 1, 3, 5 or 7")
        if self.election_timeout_ms < MIN_HEARTBEATS_PER_ELECTION * self.heartbeat_ms:
            raise StartupError(
                f"--election-timeout must be at least {MIN_HEARTBEATS_PER_ELECTION} heartbeats"
                f" ({MIN_HEARTBEATS_PER_ELECTION * self.heartbeat_ms} ms)"
            )
        names = [name for name, _ in self.members]
        if len(set(names)) != len(names):
            raise StartupError("--members names a member twice")
        if self.members and self.name not in names:
            raise StartupError(f"--members does not list this node ({self.name})")
        for url in (self.advertised_peer_url, *(url for _, url in self.members)):
            if not is_peer_url(url):
                raise StartupError(f"{url!r} is no address for other nodes like http://host:port")
        if not is_optional_client_url(self.advertised_client_url):
            raise StartupError(
                f"{self.advertised_client_url!r} is no address like http://host:port"
            )

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
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StartupError(f"cannot read the shared secret: {error}") from error
    if not secret:
        raise StartupError(f"the shared secret file {path} is empty")
    return secret


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
