"""What the API promises of locks, sessions and membership, over HTTP on three real nodes.

Requests go to the nodes in turn, so most of them are forwarded. The tests share a cluster; each
uses locks of its own name. Those that end nodes or leaders leave a healthy cluster behind.
"""

from __future__ import annotations

import http.client
import itertools
import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from checker.linearizability import check_history, failures
from checker.models import LockModel
from process.calls import Answer, call, call_later, send_and_hold
from process.cluster import SECRET, Cluster, ready_cluster
from process.recorder import Recorder
from process.running import eventually

HOUR_MS = 3_600_000


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with ready_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


class Api:
    """Sends each call to the next node."""

    def __init__(self, cluster: Cluster, lock: str) -> None:
        self.cluster = cluster
        self.lock = lock
        self._urls = itertools.cycle(cluster.urls)

    def url(self, path: str) -> str:
        return next(self._urls) + path

    def __call__(self, path: str, **body: Any) -> Answer:
        """Request ids are those of one test: clients without a name share them."""
        if "request_id" in body:
            body["request_id"] = f"{self.lock}/{body['request_id']}"
        return call(self.url(path), body)

    def acquire(self, owner: str, **more: Any) -> Answer:
        body = {"name": self.lock, "owner": owner, "ttl_ms": HOUR_MS, **more}
        return self("/lock/acquire", **body)

    def waiting(self, owner: str) -> dict[str, Any]:
        request_id = f"{self.lock}/{owner}"
        return {"name": self.lock, "owner": owner, "wait_ms": 60_000, "request_id": request_id}

    def release(self, owner: str, token: int, **more: Any) -> Answer:
        return self("/lock/release", name=self.lock, owner=owner, token=token, **more)

    def view(self) -> Answer:
        return call(self.url(f"/lock/{self.lock}"))

    def wait_for_waiters(self, count: int) -> None:
        eventually(lambda: self.view()["waiter_count"] == count, what=f"{count} waiters")


@pytest.fixture
def api(cluster: Cluster, request: pytest.FixtureRequest) -> Api:
    return Api(cluster, request.node.name.replace("[", "-").replace("]", ""))


def admin(cluster: Cluster, name: str, path: str, body: Any = None, **more: Any) -> Answer:
    return call(f"http://127.0.0.1:{cluster.port(name) + 100}{path}", body, secret=SECRET, **more)


def is_problem(answer: Answer, status: int, code: str) -> bool:
    assert answer.content_type == "application/problem+json", answer
    return (answer.status, answer["code"]) == (status, code)


# --- Retries ------------------------------------------------------------------------------------


def test_a_lost_acquire_reply_is_asked_for_again_anywhere(api: Api) -> None:
    first = api.acquire("o", request_id="acquire")
    assert first.status == 200
    for _ in range(3):
        again = api.acquire("o", request_id="acquire")
        assert (again.status, again["token"]) == (200, first["token"])
        assert again["expires_in_ms"] <= first["expires_in_ms"]
    assert is_problem(api.acquire("other", request_id="acquire"), 422, "request_id_reused")
    assert api.release("o", first["token"]).status == 200
    assert is_problem(api.acquire("o", request_id="acquire"), 409, "lock_lost")
    assert api.view()["holders"] == []


def test_a_lost_release_reply_is_asked_for_again_and_ends_nothing_else(api: Api) -> None:
    first = api.acquire("o")
    for _ in range(3):
        assert api.release("o", first["token"], request_id="release").status == 200
    second = api.acquire("o")
    assert second["token"] > first["token"]
    assert api.release("o", first["token"], request_id="release").status == 200
    assert is_problem(api.release("o", first["token"]), 409, "not_holder")
    assert [holder["token"] for holder in api.view()["holders"]] == [second["token"]]


def test_a_retry_through_another_node_survives_the_end_of_the_first_connection(api: Api) -> None:
    held = api.acquire("holder")
    body = api.waiting("waiter")
    first = send_and_hold(api.url("/lock/acquire"), body)
    api.wait_for_waiters(1)
    second = call_later(api.url("/lock/acquire"), body)
    third = call_later(api.url("/lock/acquire"), body)
    first.close()
    assert api.release("holder", held["token"]).status == 200
    tokens = {second.result(40)["token"], third.result(40)["token"]}
    assert tokens == {api.view()["token"]}


def test_a_client_that_goes_away_no_longer_waits(api: Api) -> None:
    api.acquire("holder")
    for _ in api.cluster.names:
        connection = send_and_hold(api.url("/lock/acquire"), api.waiting("waiter"))
        api.wait_for_waiters(1)
        connection.close()
        api.wait_for_waiters(0)


# --- Locks --------------------------------------------------------------------------------------


def test_the_same_owner_asking_again_is_another_request(api: Api) -> None:
    assert api.acquire("o").status == 200
    assert is_problem(api.acquire("o"), 409, "lock_held")
    deadlock = api("/lock/acquire", **api.waiting("o"))
    assert is_problem(deadlock, 409, "deadlock")
    assert deadlock["cycle"] == ["o"]


def test_a_cycle_of_waits_is_a_deadlock_for_whoever_closes_it(api: Api) -> None:
    one, other = f"{api.lock}-1", f"{api.lock}-2"
    for name, owner in ((one, "a"), (other, "b")):
        assert api("/lock/acquire", name=name, owner=owner).status == 200
    first = call_later(api.url("/lock/acquire"), {"name": other, "owner": "a", "wait_ms": 30_000})
    eventually(lambda: call(api.url(f"/lock/{other}"))["waiter_count"])
    closing = api("/lock/acquire", name=one, owner="b", wait_ms=30_000)
    assert is_problem(closing, 409, "deadlock")
    assert sorted(closing["cycle"]) == ["a", "b"]
    token = call(api.url(f"/lock/{other}"))["token"]
    assert api("/lock/release", name=other, owner="b", token=token).status == 200
    assert first.result(40).status == 200


def test_several_locks_are_taken_in_one_step_or_not_at_all(api: Api) -> None:
    names = [f"{api.lock}-{number}" for number in range(3)]
    assert api("/lock/acquire", name=names[2], owner="other", ttl_ms=HOUR_MS).status == 200
    refused = api("/lock/acquire_many", names=names, owner="o")
    assert is_problem(refused, 409, "lock_held")
    assert call(api.url(f"/lock/{names[0]}"))["holders"] == []
    granted = api("/lock/acquire_many", names=names[:2], owner="o")
    tokens = [lock["token"] for lock in granted["locks"]]
    assert [lock["name"] for lock in granted["locks"]] == names[:2]
    assert len(set(tokens)) == 2


def test_upgrade_and_downgrade(api: Api) -> None:
    shared = [api.acquire(owner, mode="shared") for owner in ("a", "b")]
    upgrade = call_later(
        api.url("/lock/upgrade"),
        {"name": api.lock, "owner": "a", "token": shared[0]["token"], "wait_ms": 30_000},
    )
    api.wait_for_waiters(1)
    double = api(
        "/lock/upgrade", name=api.lock, owner="b", token=shared[1]["token"], wait_ms=30_000
    )
    assert is_problem(double, 409, "deadlock")
    assert api.release("b", shared[1]["token"]).status == 200
    exclusive = upgrade.result(40)
    assert (exclusive["mode"], exclusive["token"] > shared[1]["token"]) == ("exclusive", True)
    assert is_problem(api.release("a", shared[0]["token"]), 409, "not_holder")
    again = api("/lock/downgrade", name=api.lock, owner="a", token=exclusive["token"])
    assert (again["mode"], again["token"]) == ("shared", exclusive["token"])
    assert api.acquire("c", mode="shared").status == 200


def test_a_semaphore_has_the_limit_of_its_first_holder(api: Api) -> None:
    for owner in ("a", "b"):
        assert api.acquire(owner, mode="shared", limit=2).status == 200
    assert is_problem(api.acquire("c", mode="shared", limit=2), 409, "lock_held")
    assert is_problem(api.acquire("c", mode="shared", limit=3), 409, "limit_mismatch")
    assert is_problem(api.acquire("c", limit=3), 422, "bad_request")


def test_a_lease_that_is_not_renewed_ends_and_its_holder_is_fenced(api: Api) -> None:
    paused = api.acquire("paused", ttl_ms=400)
    successor = api.acquire("successor", wait_ms=30_000)
    assert successor["token"] > paused["token"]
    renewal = api("/lock/renew", name=api.lock, owner="paused", token=paused["token"])
    assert is_problem(renewal, 409, "not_holder")


# --- Sessions -----------------------------------------------------------------------------------


def test_a_session_kept_alive_through_every_node_holds_its_locks(api: Api) -> None:
    session = api("/session", ttl_ms=15_000)["session"]
    grant = api.acquire("o", session=session)
    assert grant["expires_in_ms"] <= 15_000
    for _ in range(5):  # from all nodes at once: renewals of one moment are one command
        renewals = [
            call_later(url + "/session/keepalive", {"session": session})
            for url in api.cluster.urls * 2
        ]
        for renewal in renewals:
            assert 0 < renewal.result(40)["expires_in_ms"] <= 15_000
    assert api.view()["holders"][0]["session"] == session
    assert api("/session/close", session=session).status == 200
    assert api.view()["holders"] == []
    assert is_problem(api("/session/keepalive", session=session), 404, "session_not_found")
    assert is_problem(api.acquire("o", session=session), 404, "session_not_found")


def test_a_session_that_is_not_kept_alive_ends_with_its_locks(api: Api) -> None:
    session = api("/session", ttl_ms=300)["session"]
    first = api.acquire("o", session=session)
    assert api.acquire("next", wait_ms=30_000)["token"] > first["token"]


# --- Bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": ""}, "name"),
        ({"owner": 7}, "owner"),
        ({"ttl_ms": 0}, "ttl_ms"),
        ({"ttl_ms": 2**53}, "ttl_ms"),
        ({"wait_ms": -1}, "wait_ms"),
        ({"mode": "both"}, "mode"),
        ({"limit": 0, "mode": "shared"}, "limit"),
        ({"surprise": True}, "surprise"),
    ],
    ids=str,
)
def test_bad_input_names_its_field_and_changes_nothing(
    change: dict[str, Any], field: str, cluster: Cluster
) -> None:
    before = cluster.status("n1")["applied_index"]
    for url in cluster.urls:
        answer = call(f"{url}/lock/acquire", {"name": "bad", "owner": "o", **change})
        assert is_problem(answer, 422, "bad_request")
        assert answer["field"] == field
        assert call(f"{url}/lock/bad")["holders"] == []
    assert cluster.status("n1")["applied_index"] <= before + 10  # stamps of leases at most


# --- Administration -----------------------------------------------------------------------------


def test_a_forced_release_is_an_administrators_call_and_leaves_a_line(api: Api) -> None:
    held = api.acquire("o")
    assert api("/lock/force_release", name=api.lock).status in (404, 405)
    peer_url = f"http://127.0.0.1:{api.cluster.port('n2') + 100}/lock/force_release"
    assert is_problem(call(peer_url, {"name": api.lock}, secret="wrong"), 401, "unauthorized")
    assert api.view()["token"] == held["token"]
    released = admin(api.cluster, "n2", "/lock/force_release", {"name": api.lock})
    assert released.status == 200
    assert api.view()["holders"] == []
    lines = [json.loads(line) for line in api.cluster.log_of("n2").splitlines()]
    (line,) = [line for line in lines if line.get("lock") == api.lock and line["result"] == "done"]
    assert (line["action"], line["level"]) == ("force_release", "warning")


def test_a_change_for_another_membership_is_refused(cluster: Cluster) -> None:
    identity = admin(cluster, "n1", "/cluster/identity")
    (member,) = [m["id"] for m in identity["members"] if m["name"] == "n3"]
    stale = {"expected_config_index": identity["config_index"] + 1}
    answer = admin(cluster, "n2", f"/cluster/members/{member}/demote", stale)
    assert is_problem(answer, 409, "config_conflict")
    query = f"?expected_config_index={identity['config_index'] + 1}"
    answer = admin(cluster, "n2", f"/cluster/members/{member}{query}", method="DELETE")
    assert is_problem(answer, 409, "config_conflict")
    assert admin(cluster, "n3", "/cluster/identity")["members"] == identity["members"]


# --- Leaders that change ------------------------------------------------------------------------


def transfer(cluster: Cluster) -> None:
    """Hand leadership over; who was too slow to take it is asked again."""
    before = cluster.wait_for_leader()
    answers: list[Answer] = []

    def is_handed_over() -> bool:
        if cluster.leader() == before:
            answers.append(admin(cluster, before, "/cluster/transfer", {}))
        return cluster.leader() not in (None, before)

    eventually(is_handed_over, what="another leader")
    for answer in answers:
        assert answer.status == 200 or "not taken over in time" in answer["detail"]


def test_under_load_leadership_is_handed_over_without_an_error(cluster: Cluster) -> None:
    recorder = Recorder(cluster.urls, clients=4, keys=2)
    recorder.start()
    for _ in range(3):
        seen = len(recorder.granted_at)
        transfer(cluster)
        eventually(lambda seen=seen: len(recorder.granted_at) > seen + 10, what="grants")
    history = recorder.stop()
    assert [operation for operation in history if operation.result is None] == []
    bad = failures(check_history(history, LockModel()))
    assert not bad, "\n".join(report.detail for report in bad)


class Events:
    """A watch, read event by event."""

    def __init__(self, url: str) -> None:
        self.connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=40)

    def open(self, lock: str) -> None:
        self.connection.request("GET", f"/lock/{lock}/watch")
        self.response = self.connection.getresponse()
        assert self.response.status == 200

    def next_owners(self) -> list[str]:
        while not (line := self.response.readline()).startswith(b"data: "):
            assert line, "the watch has ended"
        return [holder["owner"] for holder in json.loads(line[6:])["holders"]]


def test_a_watch_goes_on_when_the_leader_changes(api: Api) -> None:
    watches = [Events(url) for url in api.cluster.urls]
    for watch in watches:
        watch.open(api.lock)
        assert watch.next_owners() == []
    for number in range(2):
        transfer(api.cluster)
        granted = api.acquire(f"o{number}", wait_ms=30_000)
        assert [watch.next_owners() for watch in watches] == [[f"o{number}"]] * 3
        assert api.release(f"o{number}", granted["token"]).status == 200
        assert [watch.next_owners() for watch in watches] == [[]] * 3
    for watch in watches:
        watch.connection.close()


def test_a_paused_leader_serves_nothing_old_from_what_was_queued(api: Api) -> None:
    cluster = api.cluster
    leader = cluster.wait_for_leader()
    others = [name for name in cluster.names if name != leader]
    first = call(
        f"{cluster.url(leader)}/lock/acquire",
        {
            "name": api.lock,
            "owner": "paused",
            "ttl_ms": 500,
        },
    )
    cluster.signal(leader, signal.SIGSTOP)
    try:
        read = call_queued_get(f"{cluster.url(leader)}/lock/{api.lock}")
        renewal = send_and_hold(
            f"{cluster.url(leader)}/lock/renew",
            {
                "name": api.lock,
                "owner": "paused",
                "token": first["token"],
                "ttl_ms": HOUR_MS,
            },
        )
        acquisition = send_and_hold(
            f"{cluster.url(leader)}/lock/acquire",
            {
                "name": api.lock,
                "owner": "late",
                "request_id": "late",
            },
        )
        cluster.wait_for_leader(others)
        successor = call(
            f"{cluster.url(others[0])}/lock/acquire",
            {
                "name": api.lock,
                "owner": "successor",
                "ttl_ms": HOUR_MS,
                "wait_ms": 30_000,
            },
        )
        assert successor["token"] > first["token"]
    finally:
        cluster.signal(leader, signal.SIGCONT)
    assert [h["owner"] for h in answer_of(read)["holders"]] == ["successor"]
    assert answer_of(renewal)["code"] == "not_holder"
    assert answer_of(acquisition)["code"] == "lock_held"


def call_queued_get(url: str) -> http.client.HTTPConnection:
    host, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=40)
    connection.request("GET", f"/{path}")
    return connection


def answer_of(connection: http.client.HTTPConnection) -> Any:
    content = json.loads(connection.getresponse().read())
    connection.close()
    return content


# --- Nodes that end -----------------------------------------------------------------------------


def test_a_node_that_is_told_to_stop_leaves_no_request_without_an_answer(api: Api) -> None:
    cluster = api.cluster
    held = api.acquire("holder")
    leader = cluster.wait_for_leader()
    for name in (leader, next(name for name in cluster.names if name != leader)):
        body = api.waiting(f"waiter at {name}")
        waiting = call_later(f"{cluster.url(name)}/lock/acquire", body)
        api.wait_for_waiters(1)
        cluster.signal(name, signal.SIGTERM)
        assert cluster.processes[name].wait(timeout=20) == 0
        assert is_problem(waiting.result(5), 504, "outcome_unknown")
        elsewhere = next(other for other in cluster.names if other != name)
        retry = call_later(f"{cluster.url(elsewhere)}/lock/acquire", body)
        lock_url = f"{cluster.url(elsewhere)}/lock/{api.lock}"
        eventually(lambda url=lock_url: call(url)["waiter_count"])
        token = held["token"]
        released = call(
            f"{cluster.url(elsewhere)}/lock/release",
            {"name": api.lock, "owner": held["owner"], "token": token},
        )
        assert released.status == 200
        held = retry.result(40)
        assert held["token"] > token
        cluster.start(name)
        cluster.wait_ready()


def test_all_nodes_killed_at_once_lose_nothing(api: Api) -> None:
    held = api.acquire("o", request_id="acquire")
    assert held.status == 200
    session = api("/session", ttl_ms=60_000)["session"]
    for name in api.cluster.names:
        api.cluster.signal(name, signal.SIGSTOP)
    for name in api.cluster.names:
        api.cluster.kill(name)
    api.cluster.start()
    api.cluster.wait_ready()
    (holder,) = api.view()["holders"]
    assert (holder["owner"], holder["token"]) == ("o", held["token"])
    assert holder["expires_in_ms"] <= held["expires_in_ms"]
    again = api.acquire("o", request_id="acquire")
    assert (again.status, again["token"]) == (200, held["token"])
    assert api("/session/keepalive", session=session).status == 200
    assert api.release("o", held["token"]).status == 200
    assert api.acquire("o")["token"] > held["token"]


def test_a_removed_member_cannot_come_back_by_restarting_but_as_another(cluster: Cluster) -> None:
    leader = cluster.wait_for_leader()
    name = next(name for name in cluster.names if name != leader)
    removed = admin(cluster, name, "/cluster/identity")["member_id"]
    path = f"/cluster/members/{removed}"
    assert is_problem(admin(cluster, name, "/cluster/archive", {}), 409, "config_conflict")
    assert admin(cluster, leader, path, method="DELETE").status == 200
    assert admin(cluster, leader, path, method="DELETE").status == 200  # a repeated call

    def is_removed() -> bool:
        return cluster.status(name)["state"] == "removed"

    eventually(is_removed, what="to know of its removal")
    cluster.kill(name)
    cluster.start(name)
    eventually(is_removed, what="still removed")
    refused = call(f"{cluster.url(name)}/lock/acquire", {"name": "x", "owner": "o"})
    assert is_problem(refused, 503, "member_removed")
    own = {"id": removed, "name": name, "peer_url": "http://127.0.0.1:1"}
    answer = admin(cluster, leader, "/cluster/members", own)
    assert is_problem(answer, 409, "config_conflict")

    archived = admin(cluster, name, "/cluster/archive", {})
    assert removed in archived["archived_to"]
    cluster.processes[name].wait(timeout=20)
    cluster.start(name)
    cluster.wait_ready()

    def voters() -> set[str]:
        return {m["name"] for m in cluster.status(leader)["members"] if m["voter"]}

    eventually(lambda: voters() == set(cluster.names), what="a voter under a new id")
    assert admin(cluster, name, "/cluster/identity")["member_id"] != removed
