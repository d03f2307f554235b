"""Which node to ask: the configured URLs, those the cluster told of, and where the leader is.

No I/O here; `discovery` asks, this decides. The rules:

- A configured URL is always usable. A URL that the cluster told of becomes usable only after a
  node of *this* cluster answered there as the member it should be: behind port-forwards and NAT
  such a URL may lead nowhere, or to somebody else.
- A usable URL of the leader comes first. It may be a configured one at which the leader answered.
- Without it the choice sticks to the node that answered last and moves on when that one fails:
  any node forwards to the leader.
- A call may prefer the owner of what it asks for, where the cluster said that is, if that URL is
  usable and does not rest.
- A call to the cache keeps to one node, since that one then has what it reads at hand: to the URL
  of a member, as a URL of several nodes would lead to another each time. Clients spread over them.
- A configured URL that failed rests for a moment, doubled with each failure; when all rest, the
  one whose rest ends first is asked all the same. A discovered URL that failed must prove itself
  anew before it is used.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from yarl import URL

from distsync.models import ClusterStatus

__all__ = ["DEFAULT_URLS", "Endpoint", "NodeSet", "parse_urls"]

# Where `distsync up` runs three nodes.
DEFAULT_URLS = ("http://127.0.0.1:8081", "http://127.0.0.1:8082", "http://127.0.0.1:8083")

_REST_SECONDS = 0.25
_LONGEST_REST_SECONDS = 5.0
_LONGEST_PROBE_REST_SECONDS = 30.0
_MAX_PATHS_KEPT = 64


def parse_urls(urls: str | Iterable[str]) -> tuple[str, ...]:
    """Return node URLs in one form; a string may hold several, separated by commas.

    Raises:
        ValueError: there is none, or one is not an http(s) URL.
    """
    given = urls.split(",") if isinstance(urls, str) else list(urls)
    found = [normalize_url(text) for text in given if text.strip()]
    if not found:
        raise ValueError("at least one node URL is needed, such as http://127.0.0.1:8081")
    return tuple(dict.fromkeys(found))


def normalize_url(text: str) -> str:
    """Return `http://host:port[/prefix]`; `host:port` alone means http."""
    text = text.strip()
    try:
        url = URL(text if "://" in text else f"http://{text}")
    except ValueError as error:
        raise ValueError(f"{text!r} is not a node URL: {error}") from None
    if url.scheme not in ("http", "https") or not url.host or url.query_string or url.fragment:
        raise ValueError(f"{text!r} is not a node URL such as http://127.0.0.1:8081")
    return str(url).rstrip("/")


@dataclass(slots=True, kw_only=True, eq=False)
class Endpoint:
    """One URL and what is known of it."""

    url: str
    configured: bool
    usable: bool
    member_id: str | None = None
    failures: int = 0
    rests_until: float = 0.0
    paths: dict[str, URL] = field(default_factory=dict)

    def at(self, path: str) -> URL:
        """Return the URL of a path; those of the first few are parsed once."""
        url = self.paths.get(path)
        if url is None:
            url = URL(self.url + path, encoded=True)
            if len(self.paths) < _MAX_PATHS_KEPT:
                self.paths[path] = url
        return url


class NodeSet:
    """The endpoints of one cluster and the choice among them."""

    def __init__(self, urls: tuple[str, ...], *, first: int = 0) -> None:
        """Begin with the configured `urls`, asking number `first` of them; any number will do."""
        self._endpoints = {url: Endpoint(url=url, configured=True, usable=True) for url in urls}
        self._current = self._endpoints[urls[first % len(urls)]]
        self._leader: Endpoint | None = None
        self._first = first
        self._kept: Endpoint | None = None
        self._member_of_url: dict[str, str] = {}
        self._term = -1
        self.leader_url: str | None = None
        self.cluster_id: str | None = None

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """All endpoints, the configured ones first."""
        return tuple(self._endpoints.values())

    @property
    def leader_is_reachable(self) -> bool:
        """Whether calls go straight to the announced leader."""
        return self._leader is not None

    def choose(self, now: float, avoid: Endpoint | None = None) -> Endpoint:
        """Return the endpoint to ask next; `avoid` the one that just failed if there is another."""
        leader = self._leader
        if leader is not None and leader is not avoid and leader.rests_until <= now:
            return leader
        current = self._current
        if current.usable and current is not avoid and current.rests_until <= now:
            return current
        usable = [e for e in self._endpoints.values() if e.usable and e is not avoid]
        if not usable:
            return avoid if avoid is not None and avoid.usable else self._configured()
        awake = [e for e in usable if e.rests_until <= now]
        if awake:
            self._current = self._after(current, awake)
        else:
            self._current = min(usable, key=lambda endpoint: endpoint.rests_until)
        return self._current

    def preferred(self, url: str | None, now: float) -> Endpoint | None:
        """Return where a node that the cluster named can be asked right now."""
        endpoint = self._reachable(url) if url is not None else None
        return endpoint if endpoint is not None and endpoint.rests_until <= now else None

    def kept(self, now: float, avoid: Endpoint | None = None) -> Endpoint:
        """Return the endpoint that calls keep to; one to `avoid` is left for this once only."""
        kept = self._kept
        is_good = kept is not None and kept.usable and kept.rests_until <= now
        if kept is not None and is_good and kept is not avoid:
            return kept
        of_members = [
            endpoint
            for url, endpoint in self._endpoints.items()
            if url in self._member_of_url
            and endpoint.usable
            and endpoint.rests_until <= now
            and endpoint is not avoid
        ]
        if not of_members:
            return self.choose(now, avoid)
        is_there = self._current in of_members
        chosen = self._current if is_there else of_members[self._first % len(of_members)]
        if not is_good:
            self._kept = chosen
        return chosen

    def answered(self, endpoint: Endpoint) -> None:
        """Note that a node answered there, whatever it said."""
        if endpoint.failures:
            endpoint.failures = 0
            endpoint.rests_until = 0.0

    def failed(self, endpoint: Endpoint, now: float) -> None:
        """Note that no answer came from there."""
        endpoint.failures += 1
        longest = _LONGEST_REST_SECONDS if endpoint.configured else _LONGEST_PROBE_REST_SECONDS
        rest = min(_REST_SECONDS * 2 ** min(endpoint.failures - 1, 10), longest)
        endpoint.rests_until = now + rest
        if not endpoint.configured:
            endpoint.usable = False
        if endpoint is self._leader:
            self.leader_url = None
            self._leader = None

    def note_leader(self, url: str | None) -> None:
        """Note where an answer said the leader is."""
        if url is not None and url != self.leader_url:
            self.leader_url = url
            self._find_leader()

    def note_status(self, endpoint: Endpoint, status: ClusterStatus, now: float) -> None:
        """Learn the members from the status that a node gave at this endpoint."""
        if not endpoint.usable and not self._is_who_it_should_be(endpoint, status):
            self.failed(endpoint, now)
            return
        endpoint.usable = True
        endpoint.member_id = status.member_id
        self.answered(endpoint)
        if status.cluster_id is None:
            return
        if endpoint.configured:
            self.cluster_id = status.cluster_id
        if status.term >= self._term and status.leader_url:
            self._term = status.term
            self.leader_url = status.leader_url.rstrip("/")
        self._learn_members(status)
        self._find_leader()

    def unproven(self, now: float) -> list[Endpoint]:
        """Return the endpoints that would be usable if they proved themselves, and may try now."""
        return [e for e in self._endpoints.values() if not e.usable and e.rests_until <= now]

    def _is_who_it_should_be(self, endpoint: Endpoint, status: ClusterStatus) -> bool:
        return (
            status.cluster_id is not None
            and status.cluster_id == self.cluster_id
            and status.member_id == self._member_of_url.get(endpoint.url)
        )

    def _learn_members(self, status: ClusterStatus) -> None:
        members = {m.client_url.rstrip("/"): m.id for m in status.members if m.client_url}
        if not members:
            return
        self._member_of_url = members
        for url in members:
            if url not in self._endpoints:
                self._endpoints[url] = Endpoint(url=url, configured=False, usable=False)
        gone = [e for u, e in self._endpoints.items() if not e.configured and u not in members]
        for endpoint in gone:
            endpoint.usable = False
            del self._endpoints[endpoint.url]

    def _find_leader(self) -> None:
        self._leader = self._reachable(self.leader_url) if self.leader_url is not None else None

    def _reachable(self, url: str) -> Endpoint | None:
        """Return the usable endpoint of the node at a URL that the cluster told of."""
        endpoint = self._endpoints.get(url)
        if endpoint is not None and endpoint.usable:
            return endpoint
        member_id = self._member_of_url.get(url)
        if member_id is None:
            return None
        same = (e for e in self._endpoints.values() if e.usable and e.member_id == member_id)
        return next(same, None)

    def _after(self, current: Endpoint, choices: list[Endpoint]) -> Endpoint:
        order = list(self._endpoints.values())
        start = order.index(current) if current in order else -1
        ranked = order[start + 1 :] + order[: start + 1]
        return next(endpoint for endpoint in ranked if endpoint in choices)

    def _configured(self) -> Endpoint:
        configured = (e for e in self._endpoints.values() if e.configured)
        return min(configured, key=lambda endpoint: endpoint.rests_until)
