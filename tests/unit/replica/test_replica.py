"""What one replica decides: whose member it is, what it answers, when time is committed."""

from __future__ import annotations

from distsync_node.locks.commands import (
    Acquire,
    Cancel,
    Done,
    Granted,
    KeepAlive,
    LockMode,
    OpenSession,
    RefusalCode,
    Refused,
    Release,
    Renew,
    RequestKey,
    SessionId,
)
from distsync_node.raft.types import (
    AppendRequest,
    ConfigOperation,
    LogIndex,
    Member,
    MemberId,
    RaftOptions,
    Term,
)
from distsync_node.replica.types import (
    AdminDone,
    Answer,
    AnswerCode,
    AnswerEnvelope,
    AwaitApplied,
    Bootstrap,
    ChangeMembership,
    Disconnect,
    DiskFullChanged,
    Diverged,
    Drain,
    Envelope,
    Initialise,
    LeaseHeld,
    MarkRemoved,
    Parked,
    PeerMessages,
    ReadAt,
    ReceiveAnswer,
    ReceiveEnvelope,
    Rejected,
    RejectReason,
    ReplicaOptions,
    Reply,
    RingChanged,
    Stop,
    Submit,
    SubmitRead,
    Transfer,
)
from unit.replica.pump import Pump, acquire

HELLO = AppendRequest(Term(2), LogIndex(1), Term(1), LogIndex(1), 1)


def hear(
    pump: Pump, to: str, *, cluster: str = "k", meant_for: str = "", sender: str = "m1"
) -> Answer:
    """Have a replica receive an append; return how it was taken."""
    replica = pump.replicas[MemberId(to)]
    envelope = Envelope(cluster, MemberId(sender), MemberId(meant_for or to), (1, 1), (HELLO,))
    for effect in replica.step(ReceiveEnvelope(now_ms=pump.now_ms, envelope=envelope)):
        if isinstance(effect, AnswerEnvelope):
            return effect.answer
    raise AssertionError("no answer")


# --- Belonging ----------------------------------------------------------------------------------


def test_three_members_form_a_cluster_and_answer_a_command() -> None:
    pump = Pump()
    pump.form()
    pump.submit(10, acquire("a", "o", request="1"))
    pump.run(50)
    (reply,) = pump.of_kind(Reply, 10)
    assert isinstance(reply.outcome, Granted)
    assert 900 < reply.remaining_ms <= 1_000
    pump.run(500)
    assert len({replica.machine.state_hash() for replica in pump.replicas.values()}) == 1


def test_a_bootstrap_that_does_not_list_this_very_id_is_refused() -> None:
    pump = Pump(1)
    pump.start(MemberId("wiped"), seed=9)
    pump.step(
        MemberId("wiped"),
        Bootstrap(now_ms=pump.now_ms, ref=1, cluster_id="k", members=pump.members),
    )
    assert pump.of_kind(Rejected)[0].reason is RejectReason.NOT_LISTED
    assert pump.replicas[MemberId("wiped")].state == "uninitialised"


def test_a_bootstrap_that_lists_an_id_twice_is_refused() -> None:
    pump = Pump(nodes=1)
    (member,) = pump.members
    twice = (member, Member(id=member.id, name="n2", peer_url="http://n2"))
    (effect,) = pump.replicas[member.id].step(
        Bootstrap(now_ms=0, ref=1, cluster_id="k", members=twice)
    )
    assert isinstance(effect, Rejected)
    assert effect.reason is RejectReason.CONFIG_CONFLICT


def test_a_bootstrap_is_idempotent_and_a_second_cluster_is_refused() -> None:
    pump = Pump()
    pump.form()

    def again(ref: int, cluster_id: str, members: tuple[Member, ...]) -> None:
        pump.step(
            MemberId("m1"),
            Bootstrap(now_ms=pump.now_ms, ref=ref, cluster_id=cluster_id, members=members),
        )

    again(20, "k", pump.members)
    again(21, "other", pump.members)
    again(22, "k", pump.members[:1])
    assert pump.of_kind(AdminDone, 20)
    assert [r.reason for r in pump.of_kind(Rejected)] == [RejectReason.ALREADY_BOOTSTRAPPED] * 2


def test_an_empty_member_adopts_one_cluster_only_and_only_under_its_very_id() -> None:
    pump = Pump(1)
    assert hear(pump, "m1", meant_for="old-id").code is AnswerCode.MEMBER_MISMATCH
    assert pump.replicas[MemberId("m1")].state == "uninitialised"
    assert hear(pump, "m1").code is AnswerCode.ACCEPTED
    assert pump.replicas[MemberId("m1")].state == "joining"
    assert hear(pump, "m1", cluster="other").code is AnswerCode.CLUSTER_MISMATCH


def test_an_empty_member_votes_for_nobody_before_its_cluster_is_on_disk() -> None:
    replica = Pump(1).replicas[MemberId("m1")]
    envelope = Envelope("k", MemberId("m2"), MemberId("m1"), (1, 1), (HELLO,))
    effects = replica.step(ReceiveEnvelope(now_ms=5, envelope=envelope))
    assert [type(effect) for effect in effects] == [AnswerEnvelope, Initialise]


def test_messages_of_another_cluster_or_for_another_id_change_nothing() -> None:
    pump = Pump()
    pump.form()
    before = [(r.raft.term, r.raft.last_index) for r in pump.replicas.values() if r.raft]
    assert hear(pump, "m1", cluster="other").code is AnswerCode.CLUSTER_MISMATCH
    assert hear(pump, "m1", meant_for="m2").code is AnswerCode.MEMBER_MISMATCH
    assert before == [(r.raft.term, r.raft.last_index) for r in pump.replicas.values() if r.raft]


def test_one_cluster_id_given_to_two_lists_of_founders_makes_two_clusters() -> None:
    """The first founder's disk was lost; its late call reached one of the others nevertheless."""
    pump = Pump()
    wiped = Member(id=MemberId("lost"), name="n1", peer_url="http://n1")
    first_list = (wiped, *pump.members[1:])
    for member, listed in zip(pump.members, (pump.members, first_list, pump.members), strict=True):
        pump.step(member.id, Bootstrap(now_ms=pump.now_ms, ref=1, cluster_id="k", members=listed))
    pump.run(3_000)
    assert pump.leader.member_id in ("m1", "m3")
    strayed = pump.replicas[MemberId("m2")]
    assert strayed.raft is not None
    assert (strayed.leader, strayed.raft.last_index) == (None, 1)


def test_a_removed_member_idles_and_its_messages_are_refused() -> None:
    pump = Pump()
    leader = pump.form()
    victim = next(m for m in pump.members if m.id != leader.member_id)
    pump.step(
        leader.member_id,
        ChangeMembership(
            now_ms=pump.now_ms, ref=5, operation=ConfigOperation.REMOVE, member=victim
        ),
    )
    pump.run(1_500)
    assert pump.of_kind(AdminDone, 5)
    assert hear(pump, leader.member_id, sender=victim.id).code is AnswerCode.SENDER_REMOVED
    removed = pump.replicas[victim.id]
    removed.step(
        ReceiveAnswer(
            now_ms=pump.now_ms,
            answer=Answer(
                AnswerCode.SENDER_REMOVED,
                "k",
                leader.member_id,
                leader.configuration.index,
                (1, 1),
            ),
        )
    )
    assert removed.state == "removed"
    before = removed.raft.last_index if removed.raft is not None else None
    hear(pump, victim.id)
    assert removed.raft is not None
    assert removed.raft.last_index == before
    assert removed.next_deadline_ms() is None
    assert removed.leader is None
    (effect,) = removed.step(
        Submit(now_ms=pump.now_ms, ref=9, command=acquire("a", "o", request="1"))
    )
    assert isinstance(effect, Rejected)
    assert effect.reason is RejectReason.REMOVED


def test_a_member_told_of_its_removal_marks_it_on_disk_once() -> None:
    pump = Pump()
    pump.form()
    told = ReceiveAnswer(
        now_ms=pump.now_ms,
        answer=Answer(AnswerCode.SENDER_REMOVED, "k", MemberId("m2"), LogIndex(99), (1, 1)),
    )
    pump.step(MemberId("m1"), told)
    pump.step(MemberId("m1"), told)
    assert len(pump.of_kind(MarkRemoved)) == 1


def test_a_learner_removed_by_a_leader_that_died_is_told_by_the_others() -> None:
    pump = Pump(nodes=4)
    leader = pump.form()
    (learner,) = (pump.replicas[one] for one in leader.configuration.learners)
    pump.cut.add(learner.member_id)
    (member,) = (one for one in pump.members if one.id == learner.member_id)
    pump.step(
        leader.member_id,
        ChangeMembership(
            now_ms=pump.now_ms, ref=5, operation=ConfigOperation.REMOVE, member=member
        ),
    )
    pump.run(100)
    assert pump.of_kind(AdminDone, 5)
    pump.cut = {leader.member_id}
    pump.run(3_000)
    assert pump.of_kind(MarkRemoved) == [MarkRemoved()]
    assert learner.state == "removed"


def test_a_leader_that_removed_itself_still_tells_the_others_what_is_committed() -> None:
    """Its last messages are lost and another member is down: the survivor needs its word."""
    pump = Pump()
    leader = pump.form()
    down, survivor = (m for m in pump.members if m.id != leader.member_id)
    pump.cut = {down.id}
    own = leader.configuration.member(leader.member_id)
    assert own is not None
    pump.step(
        leader.member_id,
        ChangeMembership(now_ms=pump.now_ms, ref=5, operation=ConfigOperation.REMOVE, member=own),
    )
    while not pump.of_kind(AdminDone, 5):
        pump.run(1)
    pump.lose_everything_under_way()
    assert leader.state == "removed"
    assert leader.member_id not in pump.replicas[survivor.id].configuration.removed
    pump.run(4_000)
    assert leader.member_id in pump.replicas[survivor.id].configuration.removed
    pump.cut = set()
    pump.run(3_000)
    assert pump.leader.member_id in (survivor.id, down.id)


def test_an_older_configuration_cannot_remove_anybody() -> None:
    pump = Pump()
    pump.form()
    stale = Answer(AnswerCode.SENDER_REMOVED, "k", MemberId("m2"), LogIndex(0), (1, 1))
    pump.step(MemberId("m1"), ReceiveAnswer(now_ms=pump.now_ms, answer=stale))
    assert pump.replicas[MemberId("m1")].state == "member"


# --- Commands -----------------------------------------------------------------------------------


def test_a_follower_proposes_nothing_and_names_the_leader() -> None:
    pump = Pump()
    leader = pump.form()
    follower = next(r for r in pump.replicas.values() if r is not leader)
    pump.submit(10, acquire("a", "o", request="1"), follower)
    (rejected,) = pump.of_kind(Rejected, 10)
    assert (rejected.reason, rejected.leader) == (RejectReason.NOT_LEADER, leader.member_id)


def test_a_leader_without_its_quorum_says_that_the_outcome_is_unknown() -> None:
    pump = Pump()
    leader = pump.form()
    pump.cut = {m.id for m in pump.members if m.id != leader.member_id}
    pump.submit(10, acquire("a", "o", request="1"))
    pump.run(2_000)
    (rejected,) = pump.of_kind(Rejected, 10)
    assert rejected.reason is RejectReason.LEADERSHIP_LOST
    assert not leader.is_ready_leader


def test_what_a_leader_proposed_before_it_was_removed_may_have_been_done() -> None:
    pump = Pump()
    leader = pump.form()
    own = next(member for member in pump.members if member.id == leader.member_id)
    pump.submit(10, acquire("a", "o1", request="1", ttl_ms=60_000))
    pump.submit(11, acquire("a", "o2", request="2", wait_ms=60_000))
    pump.run(50)
    pump.step(
        leader.member_id,
        ChangeMembership(now_ms=pump.now_ms, ref=12, operation=ConfigOperation.REMOVE, member=own),
    )
    pump.submit(13, acquire("b", "o3", request="3", ttl_ms=60_000))
    pump.run(3_000)
    assert leader.state == "removed"
    assert pump.of_kind(AdminDone, 12)
    assert pump.leader.machine.lock_view("b") is not None
    for ref in (11, 13):  # it waits on, and it was granted: "nothing was done" would be false
        (rejected,) = pump.of_kind(Rejected, ref)
        assert rejected.reason is RejectReason.LEADERSHIP_LOST


def test_what_a_leader_proposed_before_it_stopped_may_have_been_done() -> None:
    pump = Pump()
    leader = pump.form()
    pump.cut = {leader.member_id}
    pump.submit(10, acquire("a", "o", request="1"), leader)
    stopped = PeerMessages(
        now_ms=pump.now_ms, sender=MemberId("m9"), messages=(Diverged(LogIndex(1)),)
    )
    pump.step(leader.member_id, stopped)
    (rejected,) = pump.of_kind(Rejected, 10)
    assert rejected.reason is RejectReason.LEADERSHIP_LOST
    pump.submit(11, acquire("a", "o", request="2"), leader)
    (refused,) = pump.of_kind(Rejected, 11)
    assert refused.reason is RejectReason.STOPPED


def test_a_waiting_request_is_parked_and_told_when_granted() -> None:
    pump = Pump()
    pump.form()
    pump.submit(10, acquire("a", "o1", request="1", ttl_ms=60_000))
    pump.submit(11, acquire("a", "o2", request="2", wait_ms=10_000))
    pump.run(100)
    assert [parked.attempt for parked in pump.of_kind(Parked, 11)] == [1]
    (first,) = pump.of_kind(Reply, 10)
    release = Release(
        key=RequestKey(client="c", request="3"),
        digest=b"r",
        name="a",
        owner="o1",
        token=first.outcome.grants[0].token,
    )
    pump.submit(12, release)
    pump.run(100)
    (granted,) = pump.of_kind(Reply, 11)
    assert granted.outcome.owner == "o2"


def test_those_that_wait_keep_out_others_that_would_wait_and_nobody_else() -> None:
    pump = Pump(options=ReplicaOptions(max_pending=4))
    pump.form()
    opening = OpenSession(
        key=RequestKey(client="c", request="s"), digest=b"s", session=SessionId("s"), ttl_ms=60_000
    )
    pump.submit(10, opening)
    pump.submit(11, acquire("a", "o1", request="1", ttl_ms=60_000))
    pump.run(50)
    for ref in range(20, 24):
        pump.submit(ref, acquire("a", f"w{ref}", request=f"{ref}", wait_ms=600_000))
    pump.run(50)
    assert len(pump.of_kind(Parked)) == 4
    (first,) = pump.of_kind(Reply, 11)
    token = first.outcome.grants[0].token

    pump.submit(24, acquire("b", "w24", request="24", wait_ms=600_000))
    (rejected,) = pump.of_kind(Rejected, 24)
    assert rejected.reason is RejectReason.OVERLOADED

    pump.submit(30, Renew(name="a", owner="o1", token=token, ttl_ms=60_000))
    pump.submit(31, KeepAlive(sessions=(SessionId("s"),)))
    pump.submit(32, acquire("c", "o2", request="32", ttl_ms=60_000))
    pump.run(50)
    key = RequestKey(client="c", request="33")
    pump.submit(33, Release(key=key, digest=b"r", name="a", owner="o1", token=token))
    pump.run(50)
    assert all(isinstance(pump.of_kind(Reply, ref)[0].outcome, Done) for ref in (30, 31, 33))
    assert isinstance(pump.of_kind(Reply, 32)[0].outcome, Granted)
    assert isinstance(pump.of_kind(Reply, 20)[0].outcome, Granted)


def test_what_cannot_be_proposed_in_time_is_refused_unless_it_ends_or_prolongs() -> None:
    pump = Pump(options=ReplicaOptions(max_pending=4))
    leader = pump.form()
    for ref in range(20, 24):
        command = acquire("a", f"o{ref}", request=f"{ref}")
        pump.step(leader.member_id, Submit(now_ms=pump.now_ms, ref=ref, command=command))
    pump.submit(24, acquire("b", "o24", request="24"))
    (rejected,) = pump.of_kind(Rejected, 24)
    assert rejected.reason is RejectReason.OVERLOADED


def test_a_retry_survives_the_cancel_of_the_first_attempts_connection() -> None:
    pump = Pump()
    leader = pump.form()
    pump.submit(10, acquire("a", "o1", request="1", ttl_ms=500))
    waiting = acquire("a", "o2", request="2", wait_ms=10_000)
    pump.submit(11, waiting)
    pump.run(50)
    pump.submit(12, waiting)
    pump.step(leader.member_id, Disconnect(now_ms=pump.now_ms, ref=11))
    pump.run(2_000)
    assert pump.of_kind(Reply, 11) == []
    (reply,) = pump.of_kind(Reply, 12)
    assert isinstance(reply.outcome, Granted)


def test_a_disconnect_cancels_the_wait() -> None:
    pump = Pump()
    leader = pump.form()
    pump.submit(10, acquire("a", "o1", request="1", ttl_ms=60_000))
    pump.submit(11, acquire("a", "o2", request="2", wait_ms=60_000))
    pump.run(50)
    pump.step(leader.member_id, Disconnect(now_ms=pump.now_ms, ref=11))
    pump.run(50)
    view = leader.machine.lock_view("a")
    assert view is not None
    assert len(view.waiters) == 0


def test_a_disconnect_before_the_entry_is_applied_cancels_the_wait_too() -> None:
    pump = Pump()
    leader = pump.form()
    pump.submit(10, acquire("a", "o1", request="1", ttl_ms=60_000))
    pump.submit(11, acquire("a", "o2", request="2", wait_ms=60_000))
    pump.step(leader.member_id, Disconnect(now_ms=pump.now_ms, ref=11))
    pump.run(100)
    view = leader.machine.lock_view("a")
    assert view is not None
    assert len(view.waiters) == 0
    assert pump.of_kind(Parked, 11) == []


def test_a_late_first_attempt_does_not_cancel_the_retry_that_overtook_it() -> None:
    pump = Pump()
    leader = pump.form()
    pump.submit(10, acquire("a", "o1", request="1", ttl_ms=500))
    waiting = acquire("a", "o2", request="2", wait_ms=10_000)
    pump.submit(12, waiting)
    pump.run(50)
    pump.submit(11, waiting)  # sent first, delayed, and its client hung up long ago
    pump.step(leader.member_id, Disconnect(now_ms=pump.now_ms, ref=11))
    pump.run(2_000)
    (reply,) = pump.of_kind(Reply, 12)
    assert isinstance(reply.outcome, Granted)


def test_a_node_that_lost_its_client_cancels_only_what_nobody_else_waits_for() -> None:
    pump = Pump()
    leader = pump.form()
    pump.submit(10, acquire("a", "o1", request="1", ttl_ms=60_000))
    waiting = acquire("a", "o2", request="2", wait_ms=60_000)
    pump.submit(12, waiting)
    pump.run(50)
    pump.submit(11, waiting)  # sent first, overtaken; its client hangs up once it waits
    pump.run(50)
    cancel = Cancel(key=waiting.key, attempt=2)
    pump.submit(13, cancel)  # as its node does beside closing the connection
    pump.step(leader.member_id, Disconnect(now_ms=pump.now_ms, ref=11))
    pump.run(50)
    assert pump.of_kind(Reply, 13)
    assert pump.of_kind(Reply, 12) == []
    assert leader.machine.counts().places == 1
    pump.step(leader.member_id, Disconnect(now_ms=pump.now_ms, ref=12))
    pump.run(50)
    assert leader.machine.counts().places == 0


def test_a_node_that_lost_its_client_cancels_its_wait_at_the_next_leader() -> None:
    pump = Pump()
    pump.form()
    pump.submit(10, acquire("a", "o1", request="1", ttl_ms=60_000))
    waiting = acquire("a", "o2", request="2", wait_ms=60_000)
    pump.submit(11, waiting)
    pump.run(50)
    pump.cut = {pump.leader.member_id}
    pump.run(3_000)
    pump.submit(12, Cancel(key=waiting.key, attempt=1))
    pump.run(50)
    assert pump.of_kind(Reply, 12)
    assert pump.leader.machine.counts().places == 0


def test_renewals_of_a_session_in_one_moment_are_one_command_and_each_is_answered() -> None:
    pump = Pump()
    leader = pump.form()
    session = SessionId("s")
    opened = OpenSession(
        key=RequestKey(client="c", request="1"), digest=b"s", session=session, ttl_ms=1_000
    )
    pump.submit(10, opened)
    pump.run(50)
    for ref in (11, 12):
        pump.step(
            leader.member_id,
            Submit(now_ms=pump.now_ms, ref=ref, command=KeepAlive(sessions=(session,))),
        )
    pump.submit(13, KeepAlive(sessions=(SessionId("gone"),)))
    pump.run(50)
    for ref in (11, 12):
        (reply,) = pump.of_kind(Reply, ref)
        assert isinstance(reply.outcome, Done)
        assert reply.remaining_ms > 900
    (refused,) = pump.of_kind(Reply, 13)
    assert refused.outcome == Refused(code=RefusalCode.SESSION_NOT_FOUND, name="gone")


def test_a_read_waits_for_its_index_on_a_follower() -> None:
    pump = Pump()
    leader = pump.form()
    follower = next(r for r in pump.replicas.values() if r is not leader)
    pump.submit(10, acquire("a", "o", request="1"))
    pump.step(leader.member_id, SubmitRead(now_ms=pump.now_ms, ref=11))
    pump.run(20)
    assert pump.of_kind(ReadAt, 11)
    assert leader.raft is not None
    index = leader.raft.applied_index
    pump.step(follower.member_id, AwaitApplied(now_ms=pump.now_ms, ref=12, index=index))
    pump.run(200)
    assert pump.of_kind(ReadAt, 12)
    assert follower.machine.lock_view("a") is not None


# --- Time ---------------------------------------------------------------------------------------


def test_a_stamp_is_committed_every_half_second_while_leases_exist() -> None:
    pump = Pump()
    leader = pump.form()
    assert leader.raft is not None
    pump.run(5_000)
    idle = leader.raft.last_index
    pump.run(5_000)
    assert leader.raft.last_index == idle
    pump.submit(10, acquire("a", "o", request="1", ttl_ms=20_000))
    pump.run(10_000)
    assert 18 <= leader.raft.last_index - idle <= 23


def test_ten_leader_changes_end_no_lease_early_and_keep_none_alive() -> None:
    pump = Pump()
    pump.form()
    pump.submit(10, acquire("a", "o", request="1", ttl_ms=30_000))
    pump.run(50)
    started_ms = pump.now_ms - 50
    for _ in range(10):
        pump.cut = {pump.leader.member_id}
        pump.run(1_800)
    assert pump.leader.machine.lock_view("a") is not None
    pump.run(started_ms + 30_000 - pump.now_ms - 200)
    assert pump.leader.machine.lock_view("a") is not None
    pump.run(200 + 10 * 50 + 1_000)
    assert pump.leader.machine.lock_view("a") is None


def test_a_stale_expiry_after_a_renewal_ends_nothing() -> None:
    pump = Pump(options=ReplicaOptions(pipeline_after_ms=0))
    leader = pump.form()
    pump.submit(10, acquire("a", "o", request="1", ttl_ms=1_000))
    pump.run(50)
    (reply,) = pump.of_kind(Reply, 10)
    (grant,) = reply.outcome.grants
    pump.run(leader.clock.local_ms(reply.outcome.deadline_ms) - pump.now_ms - 1)
    pump.submit(11, Renew(name="a", owner="o", token=grant.token, ttl_ms=5_000))
    assert leader.raft is not None
    renewal = leader.raft.last_index
    pump.run(1)  # the deadline; the renewal is not applied yet, so the leader proposes an expiry
    assert leader.raft.applied_index < renewal < leader.raft.last_index
    pump.run(1_000)
    (renewed,) = pump.of_kind(Reply, 11)
    assert isinstance(renewed.outcome, Done)
    assert leader.machine.mode_of_token("a", grant.token) is LockMode.EXCLUSIVE


def test_what_comes_while_an_entry_is_in_flight_shares_the_next() -> None:
    pump = Pump()
    raft = pump.form().raft
    assert raft is not None
    before = raft.last_index
    for ref in (10, 11, 12):
        pump.submit(ref, acquire(f"lock {ref}", "o", request=str(ref)))
    assert raft.last_index == before + 1
    pump.run(3)  # the way there, the disk, the way back: the first is applied
    assert [len(pump.of_kind(Reply, ref)) for ref in (10, 11, 12)] == [1, 0, 0]
    assert raft.last_index == before + 2
    pump.run(3)
    assert [len(pump.of_kind(Reply, ref)) for ref in (10, 11, 12)] == [1, 1, 1]


def test_an_entry_that_takes_long_does_not_keep_back_the_next() -> None:
    pump = Pump(options=ReplicaOptions(serves=False, pipeline_after_ms=5, max_inflight_entries=3))
    leader = pump.form()
    raft = leader.raft
    assert raft is not None
    pump.cut = {leader.member_id}
    before = raft.last_index
    grown = []
    for ref, wait_ms in ((10, 0), (11, 4), (12, 1), (13, 20), (14, 20)):
        pump.submit(ref, acquire(f"lock {ref}", "o", request=str(ref)), leader)
        pump.run(wait_ms)
        grown.append(raft.last_index - before)
    assert grown == [1, 1, 2, 3, 3]  # and no fourth before the first is applied


def test_a_lost_reply_retried_after_the_lease_is_lock_lost() -> None:
    pump = Pump()
    leader = pump.form()
    command: Acquire = acquire("a", "o", request="1", ttl_ms=1_000)
    pump.submit(10, command)
    pump.run(2_500)
    (reply,) = pump.of_kind(Reply, 10)
    assert leader.machine.lock_view("a") is None
    pump.submit(11, command)
    pump.run(50)
    (again,) = pump.of_kind(Reply, 11)
    assert again.outcome == Refused(code=RefusalCode.LOCK_LOST, name="a")
    assert isinstance(reply.outcome, Granted)


def test_an_hour_of_idleness_and_ten_leader_changes_end_a_lease_on_time() -> None:
    pump = Pump(
        options=ReplicaOptions(serves=False, stamp_interval_ms=5_000, snapshot_entries=50),
        raft_options=RaftOptions(
            heartbeat_ms=5_000,
            election_timeout_min_ms=20_000,
            election_timeout_max_ms=40_000,
            retained_entries=10,
        ),
    )
    pump.form(within_ms=100_000)
    hour_ms = 3_600_000
    pump.submit(10, acquire("a", "o", request="1", ttl_ms=2 * hour_ms))
    pump.run(50)
    started_ms = pump.now_ms - 50
    pump.run(hour_ms)
    for _ in range(10):
        pump.cut = {pump.leader.member_id}
        pump.run(90_000)
    pump.run(started_ms + 2 * hour_ms - pump.now_ms - 1_000)
    assert pump.leader.machine.lock_view("a") is not None
    pump.run(1_000 + 10 * 50 + 1_000)
    assert pump.leader.machine.lock_view("a") is None


# --- Members, disk, divergence ------------------------------------------------------------------


def test_a_full_disk_refuses_commands_and_hands_leadership_over() -> None:
    pump = Pump()
    leader = pump.form()
    pump.step(leader.member_id, DiskFullChanged(now_ms=pump.now_ms, full=True))
    pump.submit(10, acquire("a", "o", request="1"), leader)
    (rejected,) = pump.of_kind(Rejected, 10)
    assert rejected.reason is RejectReason.DISK_FULL
    pump.run(1_000)
    assert pump.leader is not leader


def test_a_leader_with_a_full_disk_tries_again_to_hand_over() -> None:
    pump = Pump()
    leader = pump.form()
    assert leader.raft is not None
    pump.cut = {member.id for member in pump.members if member.id != leader.member_id}
    pump.step(leader.member_id, DiskFullChanged(now_ms=pump.now_ms, full=True))
    target = leader.raft.transfer_target
    assert target is not None
    pump.cut = {target}
    pump.run(2_000)
    assert leader.is_ready_leader
    pump.cut.clear()
    pump.run(8_000)
    assert pump.leader is not leader


def test_a_leader_that_hands_over_waits_with_expiries_instead_of_trying_them_for_ever() -> None:
    pump = Pump()
    leader = pump.form()
    pump.submit(10, acquire("a", "o", request="1", ttl_ms=1_000))
    pump.run(600)
    target = next(member.id for member in pump.members if member.id != leader.member_id)
    pump.cut.add(target)
    pump.step(leader.member_id, Transfer(now_ms=pump.now_ms, target=target))
    pump.submit(11, acquire("b", "p", request="2"), leader)
    before = len(pump.effects)
    pump.run(500)  # the lease ends meanwhile; the target does not answer
    assert len(pump.effects) - before < 100
    pump.cut.clear()
    pump.run(2_000)
    assert pump.leader.machine.lock_view("a") is None
    assert pump.of_kind(Reply, 11) or pump.of_kind(Rejected, 11)


def test_a_live_members_name_is_not_given_away() -> None:
    pump = Pump()
    leader = pump.form()
    other = next(m for m in pump.members if m.id != leader.member_id)
    stranger = Member(id=MemberId("x"), name=other.name, peer_url="http://x")

    def join(ref: int) -> None:
        pump.step(
            leader.member_id,
            ChangeMembership(
                now_ms=pump.now_ms,
                ref=ref,
                operation=ConfigOperation.ADD_LEARNER,
                member=stranger,
            ),
        )

    join(5)
    assert pump.of_kind(Rejected, 5)[0].reason is RejectReason.NAME_TAKEN
    pump.cut = {other.id}
    pump.run(4_000)
    join(6)
    pump.run(100)
    assert pump.of_kind(AdminDone, 6)


def test_a_wiped_node_gets_its_place_back_under_a_new_id() -> None:
    pump = Pump()
    leader = pump.form()
    lost = next(m for m in pump.members if m.id != leader.member_id)
    pump.cut = {lost.id}
    pump.run(4_000)
    new = Member(id=MemberId("new"), name=lost.name, peer_url="http://new")
    pump.start(new.id, seed=77)
    pump.step(
        leader.member_id,
        ChangeMembership(
            now_ms=pump.now_ms, ref=5, operation=ConfigOperation.ADD_LEARNER, member=new
        ),
    )
    pump.run(3_000)
    configuration = pump.leader.configuration
    assert lost.id in configuration.removed
    assert new.id in configuration.voters
    assert len(configuration.voters) == 3


def test_a_member_whose_state_differs_stops() -> None:
    pump = Pump(options=ReplicaOptions(hash_interval=4))
    leader = pump.form()
    odd = next(r for r in pump.replicas.values() if r is not leader)
    odd.machine.apply(acquire("ghost", "o", request="ghost"), odd.clock.floor_ms)
    for number in range(8):
        pump.submit(10 + number, acquire(f"a{number}", "o", request=str(number)))
        pump.run(200)
    assert odd.state == "stopped"
    assert [member for _, member, effect in pump.effects if isinstance(effect, Stop)] == [
        odd.member_id
    ]
    assert leader.state == "member"


def test_a_leader_whose_state_differs_stops_itself() -> None:
    pump = Pump(options=ReplicaOptions(hash_interval=4))
    leader = pump.form()
    leader.machine.apply(acquire("ghost", "o", request="ghost"), leader.clock.floor_ms)
    for number in range(4):
        pump.submit(10 + number, acquire(f"a{number}", "o", request=str(number)), leader)
        pump.run(200)
    assert leader.state == "stopped"


def test_a_verdict_of_divergence_stops_the_member() -> None:
    pump = Pump()
    pump.form()
    envelope = Envelope("k", MemberId("m2"), MemberId("m1"), (1, 1), (Diverged(index=LogIndex(4)),))
    pump.step(MemberId("m1"), ReceiveEnvelope(now_ms=pump.now_ms, envelope=envelope))
    assert pump.replicas[MemberId("m1")].state == "stopped"


def test_the_cluster_version_rises_once_every_member_supports_the_next() -> None:
    pump = Pump(options=ReplicaOptions(supported_versions=(1, 2)))
    pump.form()
    pump.run(2_000)
    assert {replica.cluster_version for replica in pump.replicas.values()} == {2}


def test_the_cluster_version_stays_while_one_member_is_old() -> None:
    pump = Pump(options=ReplicaOptions(supported_versions=(1, 2)))
    pump.options = ReplicaOptions(supported_versions=(1, 1))
    pump.start(MemberId("m3"), seed=3)
    pump.form()
    pump.run(2_000)
    assert {replica.cluster_version for replica in pump.replicas.values()} == {1}


# --- The ring -----------------------------------------------------------------------------------


def serving(pump: Pump) -> list[str]:
    return [server.name for server in pump.leader.ring.servers]


def test_every_member_enters_the_ring_and_holds_a_lease() -> None:
    pump = Pump()
    pump.form()
    pump.run(3_000)
    assert serving(pump) == ["n1", "n2", "n3"]
    for replica in pump.replicas.values():
        assert replica.participant is not None
        assert replica.participant.serving.lease_ends_ms() > pump.now_ms
    epochs = [effect.ring.epoch for effect in pump.of_kind(RingChanged)]
    assert max(epochs) == pump.leader.ring.epoch == 3


def test_the_ring_is_full_a_moment_after_the_first_leader_may_propose() -> None:
    pump = Pump()
    for member in pump.members:
        event = Bootstrap(now_ms=pump.now_ms, ref=1, cluster_id="k", members=pump.members)
        pump.step(member.id, event)
    while not any(replica.is_ready_leader for replica in pump.replicas.values()):
        pump.run(1)
    pump.run(2 * pump.raft_options.heartbeat_ms)  # by which others hear of what is committed
    assert serving(pump) == ["n1", "n2", "n3"]


def test_a_dead_node_leaves_the_ring_after_its_lease_and_returns_as_it_is_heard() -> None:
    pump = Pump()
    leader = pump.form()
    pump.run(3_000)
    dead = next(r for r in pump.replicas.values() if r is not leader)
    assert dead.participant is not None
    lease_ends_ms = dead.participant.serving.lease_ends_ms()
    pump.cut = {dead.member_id}
    pump.run(lease_ends_ms - pump.now_ms)
    assert len(serving(pump)) == 3
    pump.run(2_000)
    assert len(serving(pump)) == 2
    pump.cut = set()
    pump.run(3_000)
    assert len(serving(pump)) == 3
    assert pump.leader.ring.epoch == 5


def test_a_new_leader_takes_nobody_out_before_earlier_leases_have_ended() -> None:
    pump = Pump()
    old = pump.form()
    pump.run(3_000)
    assert old.participant is not None
    lease_ends_ms = old.participant.serving.lease_ends_ms()
    pump.cut = {old.member_id}
    while pump.now_ms < lease_ends_ms:
        pump.run(50)
        for replica in pump.replicas.values():
            assert len(replica.ring.servers) == 3
    pump.run(3_000)
    assert len(serving(pump)) == 2


def test_a_drained_node_gives_up_its_lease_and_leaves_the_ring_at_once() -> None:
    pump = Pump()
    leader = pump.form()
    pump.run(3_000)
    leaves = next(r for r in pump.replicas.values() if r is not leader)
    assert leaves.participant is not None
    name = next(member.name for member in pump.members if member.id == leaves.member_id)
    before = len(pump.effects)
    pump.step(leaves.member_id, Drain(now_ms=pump.now_ms))
    assert leaves.participant.serving.lease_ends_ms() == 0
    assert pump.effects[before][2] == LeaseHeld(epoch=leaves.ring.epoch, ends_ms=0)
    pump.run(500)
    assert name not in serving(pump)


def test_a_removed_member_leaves_the_ring() -> None:
    pump = Pump()
    leader = pump.form()
    pump.run(3_000)
    victim = next(m for m in pump.members if m.id != leader.member_id)
    pump.step(
        leader.member_id,
        ChangeMembership(
            now_ms=pump.now_ms, ref=5, operation=ConfigOperation.REMOVE, member=victim
        ),
    )
    pump.run(500)
    assert victim.name not in serving(pump)
