"""ReadIndex (thesis §6.4): a read sees everything that was committed before it arrived."""

from __future__ import annotations

from distsync_node.raft.types import (
    DropReason,
    ReadDropped,
    ReadReady,
    Role,
    Send,
)
from unit.raft.cluster import Cluster
from unit.raft.single import Single, accepted, append, leader, log_of, of, refused, sent


def ready(effects) -> list[tuple[int, int]]:
    return [(each.ref, each.index) for each in of(effects, ReadReady)]


def round_of(effects) -> int:
    return sent(effects)[0].round


def test_a_read_waits_for_a_quorum_to_answer_a_round_begun_after_it() -> None:
    single = leader()
    effects = single.read(1)
    assert ready(effects) == []
    assert ready(single.receive("2", accepted(2, 2, round_of(effects)))) == [(1, 2)]


def test_answers_to_earlier_rounds_do_not_confirm_a_read() -> None:
    single = leader()
    earlier = round_of(single.time_out())
    single.read(1)
    for follower in "23":
        assert ready(single.receive(follower, accepted(2, 2, earlier))) == []


def test_a_round_reaches_voters_only() -> None:
    single = leader("123", "4")
    assert {send.to for send in of(single.read(), Send)} == {"2", "3"}


def test_learners_do_not_confirm_a_read() -> None:
    single = leader("123", "4")
    effects = single.read(1)
    assert ready(single.receive("4", accepted(2, 2, round_of(effects)))) == []


def test_a_minority_does_not_confirm_a_read() -> None:
    single = leader("12345")
    effects = single.read(1)
    round_number = round_of(effects)
    assert ready(single.receive("2", accepted(2, 2, round_number))) == []
    assert ready(single.receive("2", accepted(2, 2, round_number))) == []
    assert ready(single.receive("3", accepted(2, 2, round_number))) == [(1, 2)]


def test_reads_that_arrive_during_a_round_share_the_next_one() -> None:
    single = leader()
    first = single.read(1)
    assert sent(single.read(2)) == []
    assert sent(single.read(3)) == []
    second = single.receive("2", accepted(2, 2, round_of(first)))
    assert ready(second) == [(1, 2)]
    assert ready(single.receive("3", accepted(2, 2, round_of(first)))) == []
    assert ready(single.receive("3", accepted(2, 2, round_of(second)))) == [(2, 2), (3, 2)]


def test_a_heartbeat_takes_waiting_reads_along() -> None:
    """The first round was lost; the heartbeat's confirms it and what came since."""
    single = leader()
    single.read(1)
    single.read(2)
    effects = single.time_out()
    confirmed = single.receive("2", accepted(2, 2, round_of(effects)))
    assert ready(confirmed) == [(1, 2), (2, 2)]


def test_a_refused_append_confirms_as_well() -> None:
    single = leader()
    effects = single.read(1)
    answer = refused(2, 9, (3, 0), round_number=round_of(effects))
    assert ready(single.receive("2", answer)) == [(1, 2)]


def test_a_read_waits_for_the_leaders_own_no_op() -> None:
    single = Single(entries=log_of(1, 1))
    single.lead()
    single.write()
    assert sent(single.read(1)) == []
    heartbeat = single.time_out()
    assert ready(single.receive("2", accepted(2, 3, round_of(heartbeat)))) == []
    committed = single.receive("2", accepted(2, 4, round_of(heartbeat)))
    assert single.core.commit_index == 4
    assert ready(committed) == []
    assert ready(single.receive("2", accepted(2, 4, round_of(committed)))) == [(1, 4)]


def test_a_sole_voter_answers_at_once() -> None:
    assert ready(leader("1", "2").read(1)) == [(1, 2)]


def test_a_sole_voter_answers_waiting_reads_with_its_no_op() -> None:
    single = Single("1")
    single.lead()
    assert ready(single.read(1)) == []
    assert ready(single.write()) == [(1, 2)]


def test_who_does_not_lead_drops_reads() -> None:
    dropped = of(Single().read(1), ReadDropped)
    assert [(d.ref, d.reason) for d in dropped] == [(1, DropReason.NOT_LEADER)]


def test_a_deposed_leader_drops_its_reads() -> None:
    single = leader()
    single.read(1)
    single.read(2)
    dropped = of(single.receive("2", append(3, (2, 2))), ReadDropped)
    assert [d.ref for d in dropped] == [1, 2]


def test_a_late_answer_does_not_serve_a_dropped_read() -> None:
    single = leader()
    round_number = round_of(single.read(1))
    single.receive("2", append(3, (2, 2)))
    assert ready(single.receive("3", accepted(2, 2, round_number))) == []


def test_a_deposed_leader_that_does_not_know_it_serves_nothing() -> None:
    cluster = Cluster("123")
    cluster.elect("1")
    cluster.isolate("1")
    cluster.now_ms += 700
    cluster.tick("2")
    cluster.settle()
    assert cluster["2"].role is Role.LEADER
    cluster.propose("2", "newer")
    cluster.settle()
    assert cluster["1"].role is Role.LEADER
    cluster.read("1")
    cluster.settle()
    cluster.heal()
    cluster.wait(1_000)
    served = [effect for _, effect in cluster.effects if isinstance(effect, ReadReady)]
    dropped = [effect for _, effect in cluster.effects if isinstance(effect, ReadDropped)]
    assert served == []
    assert len(dropped) == 1


def test_a_read_claims_only_what_matches_so_that_it_may_overtake_appends() -> None:
    single = leader()
    single.propose()
    assert [message.prev_index for message in sent(single.read())] == [2, 2]


def test_a_proposal_under_way_is_not_part_of_a_read() -> None:
    single = leader()
    single.propose()
    effects = single.read(1)
    assert ready(single.receive("2", accepted(2, 2, round_of(effects)))) == [(1, 2)]
