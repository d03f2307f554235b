"""More and fewer nodes, one at a time.

Up: one pod more once all others are well. Down, the highest ordinal first: a learner that stays
votes in its place, leadership is handed over, it leaves the ring, it is removed from Raft by those
that stay, and only then its pod goes.
"""

from __future__ import annotations

from distsync_operator import names
from distsync_operator.model import (
    Drain,
    Member,
    Operation,
    Plan,
    PromoteMember,
    RemoveMember,
    Transfer,
    Trouble,
)
from distsync_operator.plan.objects import apply
from distsync_operator.plan.sets import nodes_manifest
from distsync_operator.plan.situation import MAX_REPLICAS, Situation, wanted_voters


def restore(situation: Situation) -> Plan | None:
    """Bring back pods of members that somebody scaled away without having them removed."""
    live = situation.observed.stateful_set
    ordinals = [situation.ordinal(member) for member in situation.members]
    known = [ordinal + 1 for ordinal in ordinals if ordinal is not None]
    if live is None or not known:
        return None
    wanted = min(max(known), MAX_REPLICAS)
    if situation.leader is not None:
        wanted = min(wanted, situation.spec.replicas)
    if wanted <= live.replicas:
        return None
    operation = Operation(type="Recover", target=situation.name, step="bring pods back")
    return Plan(action=apply(nodes_manifest(situation, wanted)), operation=operation)


def up(situation: Situation) -> Plan | None:
    """Add one pod once all that are there are well."""
    live = situation.observed.stateful_set
    if live is None or live.replicas >= situation.spec.replicas:
        return None
    for ordinal in range(live.replicas):
        pod = situation.pods.get(ordinal)
        if pod is None or not situation.is_well(pod):
            target = situation.name if pod is None else pod.name
            return Plan(operation=Operation(type="ScaleUp", target=target, step="wait for node"))
    old_pod, claim = situation.pods.get(live.replicas), situation.claims.get(live.replicas)
    if old_pod is not None:
        operation = Operation(type="ScaleUp", target=old_pod.name, step="wait for old pod")
        return Plan(operation=operation)
    if claim is not None and claim.terminating:
        operation = Operation(type="ScaleUp", target=claim.name, step="wait for old volume")
        return Plan(operation=operation)
    manifest = nodes_manifest(situation, live.replicas + 1)
    target = names.pod(situation.name, live.replicas)
    operation = Operation(type="ScaleUp", target=target, step="create pod")
    return Plan(action=apply(manifest), operation=operation)


def down(situation: Situation) -> Plan | None:
    """Take the node of the highest ordinal out, one step."""
    live = situation.observed.stateful_set
    if live is None:
        return None
    ordinals = [situation.ordinal(member) for member in situation.members]
    highest = max([live.replicas - 1, *(o for o in ordinals if o is not None)])
    if highest < situation.spec.replicas:
        return None
    if situation.members_of(highest):
        return leave(situation, highest, "ScaleDown")
    target = names.pod(situation.name, highest)
    operation = Operation(type="ScaleDown", target=target, step="delete pod")
    return Plan(action=apply(nodes_manifest(situation, highest)), operation=operation)


def leave(situation: Situation, ordinal: int, why: str) -> Plan:
    """Take the next step towards removing the members of a pod's name from the cluster."""
    leavers = situation.members_of(ordinal)
    leaver = leavers[0]

    def step(text: str) -> Operation:
        return Operation(type=why, target=leaver.name, step=text)

    if not situation.survives_removal([member.id for member in leavers]):
        return Plan(
            operation=step("wait for a quorum without it"), trouble=_needed(situation, leaver)
        )
    promotion = _promotion(situation, leaver)
    if promotion is not None:
        promote = PromoteMember(
            via=situation.via, member=promotion, config_index=situation.config_index
        )
        return Plan(action=promote, operation=step(f"promote {promotion.name}"))
    heir = _heir(situation, leaver)
    if heir is not None:
        transfer = Transfer(via=situation.via, member=heir)
        return Plan(action=transfer, operation=step(f"transfer leadership to {heir.name}"))
    if _is_to_drain(situation, ordinal, leavers):
        pod_name = situation.pods[ordinal].name
        if not situation.node(situation.pods[ordinal]).draining:
            return Plan(action=Drain(pod=pod_name), operation=step("drain"))
        return Plan(operation=step("wait until it has drained"))
    remove = RemoveMember(via=situation.via, member=leaver, config_index=situation.config_index)
    return Plan(action=remove, operation=step("remove member"))


def _needed(situation: Situation, leaver: Member) -> Trouble:
    if len(situation.voters) == 1 and leaver.voter and len(situation.members) > 1:
        # The leader demotes whoever is promoted beside it, so there is nobody to hand over to.
        message = (
            f"{leaver.name} is the only voter and cannot leave; want three nodes and at least three"
            " voters, and fewer once the cluster is ready"
        )
        return Trouble(reason="LastVoter", message=message)
    message = f"{leaver.name} cannot leave: without it too few voters answer; bring the others back"
    return Trouble(reason="QuorumAtRisk", message=message)


def _promotion(situation: Situation, leaver: Member) -> Member | None:
    """Return a learner that is to vote before a voter leaves."""
    wanted = wanted_voters(len(situation.members) - 1, situation.spec.raft.voters)
    if not leaver.voter or len(situation.voters) - 1 >= wanted:
        return None
    staying = [
        member
        for member in situation.members
        if not member.voter
        and member.name != leaver.name
        and situation.is_alive(member)
        and member.caught_up
    ]
    return _first(situation, staying)


def _heir(situation: Situation, leaver: Member) -> Member | None:
    """Return who is to lead before a member leaves, if somebody else has to.

    When a single voter will be left, it will be the leader (the others are demoted), so that has to
    be one that stays until the end.
    """
    staying = [member for member in situation.alive_voters() if member.name != leaver.name]
    heir = _first(situation, staying)
    if heir is None or situation.leads(heir):
        return None
    will_be_single = wanted_voters(len(situation.members) - 1, situation.spec.raft.voters) == 1
    return heir if situation.leads(leaver) or will_be_single else None


def _first(situation: Situation, members: list[Member]) -> Member | None:
    """Return the member of the lowest ordinal, which leaves last."""
    ordinals = {member.name: situation.ordinal(member) for member in members}
    known = [member for member in members if ordinals[member.name] is not None]
    return min(known or members, key=lambda member: ordinals[member.name] or 0, default=None)


def _is_to_drain(situation: Situation, ordinal: int, leavers: list[Member]) -> bool:
    """Whether the node still serves a part of the ring or is one that clients are led to."""
    pod = situation.pods.get(ordinal)
    if pod is None or pod.terminating:
        return False
    node = situation.node(pod)
    if node.state != "member" or node.member_id not in {member.id for member in leavers}:
        return False
    return not node.draining or pod.name in situation.observed.ring or pod.ready
