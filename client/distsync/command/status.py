"""`distsync status`: every node's own view of itself, side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import click

from distsync.command.calls import Caller
from distsync.command.failures import Failure
from distsync.command.options import Options, cluster_options
from distsync.command.output import emit, render_json, render_table
from distsync.errors import DistSyncError
from distsync.models import ClusterStatus, Member

_DEADLINE_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """One node: what it said, or why it did not, and what the others know of it."""

    url: str
    said: ClusterStatus | None
    silence: str | None = None
    member: Member | None = None


@click.command()
@cluster_options
@click.pass_obj
def status(options: Options) -> None:
    """Show each node as it sees itself, and who leads.

    Asks the nodes of --url and every other member they name; ends with 1 when none answers.
    """
    views = asyncio.run(look_around(options.urls))
    if all(view.said is None for view in views):
        raise Failure(f"no node answers: {views[0].silence}", code="unavailable")
    leader = _leader(views)
    if options.json:
        emit(render_json(_as_json(views, leader)))
    else:
        emit(_as_table(views, leader))


async def look_around(urls: Iterable[str]) -> list[NodeView]:
    """Ask the nodes at `urls`, then the members they name that were not asked yet."""
    async with Caller(deadline_seconds=_DEADLINE_SECONDS) as caller:
        views = await _ask_all(caller, dict.fromkeys(urls))
        members = _members(views)
        known = {view.said.member_id for view in views if view.said is not None}
        asked = {view.url for view in views}
        others = [
            member.client_url
            for member in members.values()
            if member.id not in known and member.client_url and member.client_url not in asked
        ]
        views += await _ask_all(caller, dict.fromkeys(others))
    return _one_each(views, members)


async def _ask_all(caller: Caller, urls: Iterable[str]) -> list[NodeView]:
    async def ask(url: str) -> NodeView:
        try:
            return NodeView(url=url, said=await caller.get(f"{url}/cluster/status", ClusterStatus))
        except DistSyncError as error:
            return NodeView(url=url, said=None, silence=error.detail)

    return list(await asyncio.gather(*(ask(url) for url in urls)))


def _members(views: Iterable[NodeView]) -> dict[str, Member]:
    """Return the members by id, as the node with the newest configuration tells them."""
    said = [view.said for view in views if view.said is not None and view.said.members]
    newest = max(said, key=lambda status: status.config_index, default=None)
    return {member.id: member for member in newest.members} if newest is not None else {}


def _one_each(views: list[NodeView], members: dict[str, Member]) -> list[NodeView]:
    """Join what nodes said with what is known of them; one row a node, however it was reached."""
    by_url = {member.client_url: member for member in members.values()}
    rows: dict[str, NodeView] = {}
    for view in views:
        member = members.get(view.said.member_id) if view.said else by_url.get(view.url)
        key = view.said.member_id if view.said else member.id if member else view.url
        if key not in rows or rows[key].said is None:
            rows[key] = NodeView(url=view.url, said=view.said, silence=view.silence, member=member)
    return sorted(rows.values(), key=name_of)


def _leader(views: Iterable[NodeView]) -> ClusterStatus | None:
    """Return the leader of the highest term: a paused one may still think that it leads."""
    leaders = [v.said for v in views if v.said is not None and v.said.role == "leader"]
    return max(leaders, key=lambda status: status.term, default=None)


def name_of(view: NodeView) -> str:
    """Return what a node is called, as well as it is known."""
    if view.said is not None:
        return view.said.node
    return view.member.name if view.member is not None else view.url


def _is_voter(view: NodeView) -> bool | None:
    return view.member.voter if view.member is not None else None


def _state(view: NodeView) -> str:
    if view.said is None:
        return "unreachable"
    if view.said.disk_full:
        return "disk full"
    if view.said.state != "member":
        return view.said.state
    return "ready" if view.said.ready else "not ready"


def _as_table(views: list[NodeView], leader: ClusterStatus | None) -> str:
    headings = ("", "NAME", "ROLE", "VOTER", "TERM", "COMMIT", "APPLIED", "STATE", "URL")
    rows = [
        (
            "*" if view.said is not None and view.said is leader else "",
            name_of(view),
            view.said.role if view.said is not None else None,
            _is_voter(view),
            view.said.term if view.said is not None else None,
            view.said.commit_index if view.said is not None else None,
            view.said.applied_index if view.said is not None else None,
            _state(view),
            view.url,
        )
        for view in views
    ]
    table = render_table(headings, rows)
    return table if leader is not None else f"{table}\nno leader is known"


def _as_json(views: list[NodeView], leader: ClusterStatus | None) -> dict[str, Any]:
    return {
        "leader": leader.node if leader is not None else None,
        "term": leader.term if leader is not None else None,
        "cluster_id": next((v.said.cluster_id for v in views if v.said is not None), None),
        "nodes": [
            {
                "name": name_of(view),
                "url": view.url,
                "reachable": view.said is not None,
                "state": _state(view),
                "leader": view.said is not None and view.said is leader,
                "voter": _is_voter(view),
                "role": view.said.role if view.said is not None else None,
                "term": view.said.term if view.said is not None else None,
                "commit_index": view.said.commit_index if view.said is not None else None,
                "applied_index": view.said.applied_index if view.said is not None else None,
                "error": view.silence,
            }
            for view in views
        ],
    }
