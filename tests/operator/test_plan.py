"""Observed x desired -> action, case by case."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from distsync_operator.model import (
    AddMember,
    Apply,
    Archive,
    Bootstrap,
    Delete,
    Desired,
    Drain,
    ForgetReplace,
    MarkReplacing,
    Node,
    Observed,
    Operation,
    Plan,
    PromoteMember,
    RemoveMember,
    ResizeClaim,
    StatefulSet,
    Transfer,
    Trouble,
)
from distsync_operator.plan import plan
from distsync_operator.plan.objects import known_names
from distsync_operator.plan.sets import is_upgrade
from distsync_operator.plan.situation import Situation
from kube.samples import (
    DEFAULTS,
    UID,
    claim,
    cluster,
    desired,
    empty,
    member,
    node,
    objects,
    observed,
    pod,
)

WISH = desired(cluster())


def with_nodes(seen: Observed, **changed: Node) -> Observed:
    """Say that nodes answered otherwise; `demo_1` is the node of pod demo-1."""
    nodes = {name.replace("_", "-"): answer for name, answer in changed.items()}
    return replace(seen, nodes={**seen.nodes, **nodes})


def with_pods(seen: Observed, *changed: Any) -> Observed:
    """Put pods in the place of those of their names."""
    others = [one for one in seen.pods if one.ordinal not in {new.ordinal for new in changed}]
    return replace(seen, pods=tuple(sorted([*others, *changed], key=lambda one: one.ordinal)))


def with_set(seen: Observed, **changes: Any) -> Observed:
    """Change what is seen of the StatefulSet."""
    assert seen.stateful_set is not None
    return replace(seen, stateful_set=replace(seen.stateful_set, **changes))


def with_redis_set(seen: Observed, **changes: Any) -> Observed:
    """Change what is seen of the StatefulSet of Redis."""
    assert seen.redis_set is not None
    return replace(seen, redis_set=replace(seen.redis_set, **changes))


def silent(seen: Observed, *ordinals: int, leader: int = 0) -> Observed:
    """Let nodes be dead: no pod of theirs is ready, the leader does not hear them."""
    members = tuple(
        replace(one, silent_ms=60_000) if one.name in {f"demo-{o}" for o in ordinals} else one
        for one in seen.nodes[f"demo-{leader}"].members
    )
    nodes = {
        name: replace(answer, members=members)
        for name, answer in seen.nodes.items()
        if name not in {f"demo-{o}" for o in ordinals}
    }
    seen = replace(seen, nodes=nodes)
    return with_pods(seen, *(pod(o, ready=False) for o in ordinals))


def kinds(wish: Desired) -> list[str]:
    """What is made from nothing, in order, until pods are waited for."""
    seen, made = Observed(), []
    for _ in range(20):
        action = plan(seen, wish).action
        if not isinstance(action, Apply):
            break
        manifest = action.manifest
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        made.append(f"{kind}/{name}")
        live = {**manifest, "metadata": {**manifest["metadata"], "uid": name}}
        seen = replace(seen, objects={**seen.objects, (kind, name): live})
        if (kind, name) == ("Secret", "demo-redis"):
            seen = replace(seen, redis_url="redis://there")
        if kind == "StatefulSet":
            fresh = StatefulSet(
                name=name,
                uid=name,
                replicas=manifest["spec"]["replicas"],
                update_revision="rev-2",
                claim_size="2Gi",
            )
            field = "redis_set" if name.endswith("redis") else "stateful_set"
            seen = replace(seen, **{field: fresh})
    return made


def test_everything_is_made_in_an_order_in_which_each_finds_what_it_needs() -> None:
    assert kinds(WISH) == [
        "Secret/demo-secret",
        "ConfigMap/demo-config",
        "Service/demo-nodes",
        "Service/demo",
        "PodDisruptionBudget/demo",
        "NetworkPolicy/demo",
        "Secret/demo-redis",
        "ConfigMap/demo-redis",
        "Service/demo-redis",
        "NetworkPolicy/demo-redis",
        "StatefulSet/demo-redis",
        "StatefulSet/demo",
    ]


def test_a_cluster_that_is_as_wanted_is_left_alone() -> None:
    assert plan(observed(WISH), WISH) == Plan()


def test_a_paused_resource_changes_nothing_whatever_is_wrong() -> None:
    wish = desired(cluster(replicas=5, paused=True))
    seen = replace(observed(WISH), objects={})
    assert plan(seen, wish).action is None
    assert plan(seen, wish).operation is None


def test_a_resource_that_is_being_deleted_changes_nothing() -> None:
    body = cluster()
    gone = desired(type(body)(**{**_fields(body), "deleting": True}))
    assert plan(Observed(), gone) == Plan()


def _fields(body: Any) -> dict[str, Any]:
    return {name: getattr(body, name) for name in body.__struct_fields__}


def test_an_object_that_belongs_to_somebody_else_is_not_touched() -> None:
    foreign = {"metadata": {"name": "demo", "uid": "x", "labels": {"app": "other"}}}
    seen = replace(observed(WISH), objects={("Service", "demo"): foreign})
    decision = plan(seen, WISH)
    assert decision.action is None
    assert decision.trouble is not None
    assert decision.trouble.reason == "NameTaken"


def test_an_object_of_an_owner_of_the_same_name_that_was_deleted_is_not_touched() -> None:
    seen = observed(WISH)
    body = seen.objects["Service", "demo"]
    old = [{**body["metadata"]["ownerReferences"][0], "uid": "of-another-life"}]
    body["metadata"]["ownerReferences"] = old
    assert plan(seen, WISH).trouble == Trouble(
        reason="NameTaken",
        message="Service demo exists and does not belong to this resource; delete or rename it",
    )


@pytest.mark.parametrize(
    ("switch", "kind"),
    [("podDisruptionBudget", "PodDisruptionBudget"), ("networkPolicy", "NetworkPolicy")],
)
def test_an_object_of_somebody_else_under_a_name_that_is_not_wanted_is_left_alone(
    switch: str, kind: str
) -> None:
    wish = desired(cluster(**{switch: {"enabled": False}}))
    seen = observed(wish)
    own = {"metadata": {"name": "demo", "uid": "x", "labels": {"app": "other"}}}
    assert plan(replace(seen, objects={**seen.objects, (kind, "demo"): own}), wish) == Plan()


def test_nothing_of_an_external_redis_is_looked_for() -> None:
    wish = cluster(redis={"external": {"urlSecretRef": {"name": "demo-redis"}}})
    assert "demo-redis" not in {name for _, name in known_names(wish)}
    assert {"demo-redis"} <= {name for _, name in known_names(cluster())}


def test_an_object_that_somebody_changed_is_corrected() -> None:
    seen = observed(WISH)
    seen.objects["Service", "demo"]["spec"]["ports"][0]["port"] = 81
    action = plan(seen, WISH).action
    assert isinstance(action, Apply)
    assert action.manifest["spec"]["ports"][0]["port"] == 8080


def test_what_cannot_be_had_is_settled_until_something_else_differs() -> None:
    seen = observed(WISH)
    body = seen.objects["StatefulSet", "demo"]
    (container,) = body["spec"]["template"]["spec"]["containers"]
    container["resources"]["limits"]["memory"] = "3Gi"
    assert isinstance(plan(seen, WISH).action, Apply)
    field = "spec.template.spec.containers[node].resources.limits.memory"
    seen = replace(seen, altered={("StatefulSet", "demo"): frozenset({field})})
    assert plan(seen, WISH) == Plan()
    container["image"] = "mine:1"
    assert isinstance(plan(seen, WISH).action, Apply)


def test_a_budget_that_is_not_wanted_any_more_is_deleted() -> None:
    wish = desired(cluster(podDisruptionBudget={"enabled": False}))
    assert plan(observed(WISH), wish).action == Delete(
        kind="PodDisruptionBudget", name="demo", uid="uid-of-demo"
    )


# --- Creation -------------------------------------------------------------------------------------


def born(*nodes: Node, replicas: int = 3, **changes: Any) -> Observed:
    """Pods without a cluster."""
    return observed(
        WISH,
        pods=len(nodes),
        replicas=replicas,
        nodes={f"demo-{ordinal}": answer for ordinal, answer in enumerate(nodes)},
        **changes,
    )


def test_a_cluster_is_created_once_every_node_says_that_it_is_empty() -> None:
    action = plan(born(empty(0), empty(1), empty(2)), WISH).action
    assert isinstance(action, Bootstrap)
    assert action.cluster_id == UID
    assert action.pods == ("demo-0", "demo-1", "demo-2")
    assert [one.id for one in action.members] == ["new-0", "new-1", "new-2"]


@pytest.mark.parametrize("state", ["silent", "refused", "stopped", "removed"])
def test_no_cluster_is_created_while_one_node_says_anything_else(state: Any) -> None:
    assert plan(born(empty(0), empty(1), Node(state=state)), WISH).action is None


def test_no_cluster_is_created_while_a_pod_is_missing() -> None:
    assert plan(born(empty(0), empty(1)), WISH).action is None


def test_a_node_that_reports_a_cluster_forbids_another_one() -> None:
    kept = node(2, leader=9, members=(member(0), member(1), member(2)))
    decision = plan(born(empty(0), empty(1), kept), WISH)
    assert decision.action is None
    assert decision.trouble is not None
    assert decision.trouble.reason == "QuorumLost"


def test_empty_nodes_join_a_cluster_that_is_there_whatever_its_id() -> None:
    others = (member(7, name="elsewhere"), member(1, voter=False))
    leading = node(0, members=(member(0), *others), cluster_id="restored")
    seen = born(leading, node(1, cluster_id="restored", members=leading.members), empty(2))
    action = plan(seen, WISH).action
    assert isinstance(action, AddMember)
    assert (action.via, action.member.id, action.config_index) == ("demo-0", "new-2", 9)


def test_a_wish_for_more_nodes_before_there_is_a_cluster_makes_more_pods_first() -> None:
    action = plan(born(empty(0), empty(1), empty(2)), desired(cluster(replicas=5))).action
    assert isinstance(action, Apply)
    assert action.manifest["spec"]["replicas"] == 5


def test_a_wish_for_fewer_nodes_waits_for_pods_that_may_hold_a_cluster() -> None:
    one = desired(cluster(replicas=1))
    hidden = born(empty(0), empty(1), Node(state="silent"))
    assert plan(hidden, one).action is None
    never_bound = replace(hidden, claims=(claim(0), claim(1), claim(2, bound=False)))
    action = plan(never_bound, one).action
    assert isinstance(action, Apply)
    assert action.manifest["spec"]["replicas"] == 1


def test_volumes_that_were_kept_get_their_pods_back_before_anything_is_decided() -> None:
    claims = tuple(claim(ordinal) for ordinal in range(5))
    seen = replace(observed(WISH), stateful_set=None, pods=(), nodes={}, claims=claims)
    del seen.objects["StatefulSet", "demo"]
    action = plan(seen, WISH).action
    assert isinstance(action, Apply)
    assert action.manifest["spec"]["replicas"] == 5


def test_a_pod_with_a_broken_image_is_replaced_when_the_image_is_mended() -> None:
    broken = Trouble(reason="ImagePullBackOff", message="no such image")
    silent_node = Node(state="silent")
    bad = pod(2, ready=False, revision="rev-1", trouble=broken)
    seen = with_pods(born(empty(0), empty(1), silent_node), bad)
    assert plan(seen, WISH).action == Delete(kind="Pod", name="demo-2", uid="pod-uid-2")
    stuck = with_pods(seen, replace(bad, revision="rev-2"))
    assert plan(stuck, WISH).trouble == Trouble(
        reason="ImagePullBackOff", message="demo-2: no such image"
    )


REDIS_POD = pod(0, name="demo-redis-0", uid="redis-uid", revision="r")


def test_an_old_pod_of_redis_that_does_not_start_is_replaced() -> None:
    """Its StatefulSet would wait for it to become ready."""
    broken = Trouble(reason="ImagePullBackOff", message="no such image")
    bad = replace(REDIS_POD, ready=False, revision="old", trouble=broken)
    seen = observed(WISH, redis_pods=(bad,))
    assert plan(seen, WISH).action == Delete(kind="Pod", name="demo-redis-0", uid="redis-uid")
    for left in (
        replace(bad, ready=True),  # by its StatefulSet
        replace(bad, terminating=True),
        replace(bad, revision="r"),
    ):
        assert plan(replace(seen, redis_pods=(left,)), WISH).action is None
    stays = replace(seen, redis_pods=(replace(bad, revision="r"),))
    assert plan(stays, WISH).trouble == Trouble(
        reason="ImagePullBackOff", message="demo-redis-0: no such image"
    )


def test_pods_that_cannot_be_created_are_told_of() -> None:
    forbidden = Trouble(reason="FailedCreate", message="exceeded quota")
    for seen in (
        with_set(born(empty(0), empty(1)), trouble=forbidden),
        with_redis_set(observed(WISH), trouble=forbidden),
    ):
        decision = plan(seen, WISH)
        assert (decision.action, decision.trouble) == (None, forbidden)


def test_a_missing_secret_is_named_and_nothing_is_started() -> None:
    wish = desired(cluster(redis={"external": {"urlSecretRef": {"name": "queues"}}}))
    seen = observed(wish, stateful_set=None, redis_set=None, pods=0, redis_url=None)
    del seen.objects["StatefulSet", "demo"]
    decision = plan(seen, wish)
    assert decision.action is None
    assert decision.trouble is not None
    assert decision.trouble.reason == "SecretMissing"
    assert "queues" in decision.trouble.message


def test_a_secret_that_is_gone_for_a_while_restarts_nothing() -> None:
    wish = desired(cluster(redis={"external": {"urlSecretRef": {"name": "queues"}}}))
    decision = plan(observed(wish, redis_set=None, redis_url=None), wish)
    assert decision.action is None
    assert decision.trouble is not None
    assert decision.trouble.reason == "SecretMissing"


def test_a_new_redis_url_replaces_the_pods() -> None:
    wish = desired(cluster(redis={"external": {"urlSecretRef": {"name": "queues"}}}))
    action = plan(observed(wish, redis_set=None, redis_url="redis://new"), wish).action
    assert isinstance(action, Apply)
    assert action.manifest["kind"] == "StatefulSet"


def test_a_new_password_of_the_managed_redis_replaces_its_pod_and_those_of_the_nodes() -> None:
    """Redis reads its password when it starts, and so do nodes."""
    seen = observed(WISH, redis_url="redis://:another@demo-redis.apps.svc:6379/0")
    hashes = []
    for name in ("demo-redis", "demo"):
        action = plan(seen, WISH).action
        assert isinstance(action, Apply)
        manifest = action.manifest
        assert (manifest["kind"], manifest["metadata"]["name"]) == ("StatefulSet", name)
        hashes.append(manifest["spec"]["template"]["metadata"]["annotations"]["distsync.dev/redis"])
        seen = replace(seen, objects={**seen.objects, ("StatefulSet", name): manifest})
    assert plan(seen, WISH) == Plan()
    assert hashes[0] == hashes[1]


def test_what_tells_one_password_from_another_cannot_be_guessed_at_without_the_secret() -> None:
    def annotation(token: str) -> str:
        sets = objects(desired(cluster(), token=token), 3)
        template = sets["StatefulSet", "demo"]["spec"]["template"]
        return str(template["metadata"]["annotations"]["distsync.dev/redis"])

    assert annotation("one" * 8) != annotation("two" * 8)  # of the same URL
    assert annotation("one" * 8) == annotation("one" * 8)


# --- More and fewer nodes -------------------------------------------------------------------------

FIVE = desired(cluster(replicas=5))
SEVEN_TO_THREE = desired(cluster(replicas=3))


def test_one_pod_is_added_when_all_are_well() -> None:
    action = plan(observed(FIVE, pods=3), FIVE).action
    assert isinstance(action, Apply)
    assert action.manifest["spec"]["replicas"] == 4


def test_no_pod_is_added_while_one_is_not_well() -> None:
    seen = silent(observed(FIVE, pods=3), 2)
    assert plan(seen, FIVE).action is None


def test_no_pod_is_added_while_the_old_volume_of_its_name_is_still_going() -> None:
    seen = observed(FIVE, pods=3)
    seen = replace(seen, claims=(*seen.claims, claim(3, terminating=True)))
    decision = plan(seen, FIVE)
    assert decision.action is None
    assert decision.operation is not None
    assert decision.operation.step == "wait for old volume"


def test_no_pod_is_added_while_the_old_one_of_its_name_is_still_going() -> None:
    """Its claim goes after it, so nobody knows yet whether the new one would find it."""
    decision = plan(with_pods(observed(FIVE, pods=3), pod(3, terminating=True)), FIVE)
    assert decision.action is None
    assert decision.operation is not None
    assert decision.operation.step == "wait for old pod"


def test_a_removed_node_that_is_wanted_again_starts_anew() -> None:
    seen = observed(FIVE, pods=4)
    members = seen.nodes["demo-0"].members[:3]
    nodes = {f"demo-{o}": node(o, members=members) for o in range(3)}
    nodes["demo-3"] = Node(state="removed", member_id="id-3", cluster_id=UID)
    seen = with_pods(replace(seen, nodes=nodes), pod(3, ready=False))
    assert plan(seen, FIVE).action == Archive(pod="demo-3")


def shrinking(pods: int = 5, **changes: Any) -> Observed:
    """More pods than three are wanted."""
    return observed(SEVEN_TO_THREE, pods=pods, **changes)


def test_the_highest_ordinal_drains_first() -> None:
    assert plan(shrinking(), WISH).action == Drain(pod="demo-4")


def test_a_leader_that_leaves_hands_over_before_it_drains() -> None:
    action = plan(shrinking(leader=4), WISH).action
    assert isinstance(action, Transfer)
    assert action.member.name == "demo-0"


def drained(seen: Observed, ordinal: int) -> Observed:
    """Let a node have left the ring."""
    answer = replace(seen.nodes[f"demo-{ordinal}"], draining=True)
    seen = replace(seen, nodes={**seen.nodes, f"demo-{ordinal}": answer})
    seen = replace(seen, ring=tuple(n for n in seen.ring if n != f"demo-{ordinal}"))
    return with_pods(seen, pod(ordinal, ready=False))


def test_a_node_that_has_drained_is_removed_and_only_then_is_its_pod() -> None:
    action = plan(drained(shrinking(), 4), WISH).action
    assert isinstance(action, RemoveMember)
    assert (action.member.id, action.config_index) == ("id-4", 9)
    seen = shrinking()
    members = seen.nodes["demo-0"].members[:4]
    nodes = {f"demo-{o}": node(o, members=members) for o in range(4)}
    nodes["demo-4"] = Node(state="removed", member_id="id-4", cluster_id=UID)
    action_ = plan(replace(seen, nodes=nodes), WISH).action
    assert isinstance(action_, Apply)
    assert action_.manifest["spec"]["replicas"] == 4


def test_nothing_is_removed_while_a_node_still_serves_its_part_of_the_ring() -> None:
    seen = drained(shrinking(), 4)
    seen = replace(seen, ring=(*seen.ring, "demo-4"))
    decision = plan(seen, WISH)
    assert decision.action is None
    assert decision.operation is not None
    assert decision.operation.type == "ScaleDown"


def test_a_dead_node_is_removed_without_draining() -> None:
    action = plan(silent(shrinking(), 4), WISH).action
    assert isinstance(action, RemoveMember)


def test_no_voter_leaves_when_those_that_stay_have_no_quorum() -> None:
    decision = plan(silent(shrinking(4), 1, 2), WISH)
    assert decision.action is None
    assert decision.trouble is not None


def test_a_learner_that_stays_votes_before_a_voter_leaves() -> None:
    wish = desired(cluster(replicas=3, raft={"voters": 3}))
    members = (
        member(0),
        member(1, voter=False),
        member(2),
        member(3),
    )
    nodes = {f"demo-{o}": node(o, members=members) for o in range(4)}
    action = plan(observed(wish, pods=4, nodes=nodes), wish).action
    assert isinstance(action, PromoteMember)
    assert action.member.name == "demo-1"


def test_before_a_single_voter_is_left_leadership_goes_to_the_one_that_stays() -> None:
    wish = desired(cluster(replicas=1))
    action = plan(observed(wish, pods=3, leader=1), wish).action
    assert isinstance(action, Transfer)
    assert action.member.name == "demo-0"


def test_the_only_voter_cannot_leave_and_the_way_out_is_said() -> None:
    members = (member(0, voter=False), member(1))
    nodes = {f"demo-{o}": node(o, members=members, leader=1) for o in range(2)}
    one = desired(cluster(replicas=1))
    decision = plan(observed(one, pods=2, nodes=nodes), one)
    assert decision.action is None
    assert decision.trouble is not None
    assert decision.trouble.reason == "LastVoter"


def test_members_whose_pods_were_scaled_away_by_hand_get_them_back() -> None:
    seen = silent(observed(FIVE, pods=5, replicas=3), 3, 4)
    seen = replace(seen, pods=seen.pods[:3])
    action = plan(seen, FIVE).action
    assert isinstance(action, Apply)
    assert action.manifest["spec"]["replicas"] == 5


def test_a_node_that_drains_and_is_to_stay_after_all_is_restarted() -> None:
    seen = drained(observed(FIVE, pods=5), 4)
    assert plan(seen, FIVE).action == Delete(kind="Pod", name="demo-4", uid="pod-uid-4")


# --- Rolling changes ------------------------------------------------------------------------------


def rolling(*old: int, leader: int = 0, pods: int = 3) -> Observed:
    """These pods have an old revision."""
    return with_pods(
        observed(WISH, pods=pods, leader=leader), *(pod(o, revision="rev-1") for o in old)
    )


def restarted(seen: Observed, wish: Desired = WISH) -> str | None:
    """The pod that is deleted, if that is the action."""
    action = plan(seen, wish).action
    return action.name if isinstance(action, Delete) and action.kind == "Pod" else None


def test_followers_are_replaced_first_and_one_at_a_time() -> None:
    assert restarted(rolling(0, 1, 2)) == "demo-2"
    under_way = with_pods(rolling(0, 1), pod(2, ready=False))
    assert plan(under_way, WISH).action is None
    assert restarted(rolling(0, 1)) == "demo-1"


def test_no_pod_is_replaced_before_the_last_one_serves_its_part_of_the_ring() -> None:
    seen = rolling(0, 1)
    back = replace(seen.nodes["demo-2"], serving=False)
    decision = plan(with_nodes(seen, demo_2=back), WISH)
    assert decision.action is None
    assert decision.operation == Operation(
        type="RollingUpdate", target="demo-2", step="wait for node"
    )


def test_the_leader_hands_over_and_is_replaced_last() -> None:
    action = plan(rolling(0), WISH).action
    assert isinstance(action, Transfer)
    assert action.member.name == "demo-2"
    assert restarted(rolling(0, leader=2)) == "demo-0"


def test_a_dead_old_pod_is_replaced_before_those_that_are_well() -> None:
    seen = silent(rolling(0, 1, 2), 1)
    assert restarted(with_pods(seen, pod(1, ready=False, revision="rev-1"))) == "demo-1"


def test_no_pod_is_replaced_that_the_quorum_needs() -> None:
    seen = silent(rolling(0, 2), 1)
    decision = plan(seen, WISH)
    assert decision.action is None
    assert decision.operation is not None


def test_a_new_revision_that_does_not_start_stops_the_change() -> None:
    broken = Trouble(reason="CrashLoopBackOff", message="exit code 2")
    seen = with_pods(silent(rolling(0, 1), 2), pod(2, ready=False, trouble=broken))
    decision = plan(seen, WISH)
    assert decision.action is None
    assert decision.trouble == Trouble(reason="CrashLoopBackOff", message="demo-2: exit code 2")


def test_a_single_node_is_simply_replaced() -> None:
    assert restarted(rolling(0, pods=1), desired(cluster(replicas=1))) == "demo-0"


def test_the_annotation_for_a_restart_changes_the_template_and_nothing_else() -> None:
    wish = desired(cluster(annotations={"distsync.dev/restarted-at": "2026-11-25T10:00:00Z"}))
    action = plan(observed(WISH), wish).action
    assert isinstance(action, Apply)
    template = action.manifest["spec"]["template"]
    assert template["metadata"]["annotations"]["distsync.dev/restarted-at"]


def test_what_the_controller_of_stateful_sets_has_not_seen_is_not_taken_for_done() -> None:
    for unseen in (
        with_set(observed(WISH), update_revision=""),
        with_redis_set(observed(WISH), update_revision=""),
    ):
        decision = plan(unseen, WISH)
        assert decision.action is None
        assert decision.operation is not None
        assert decision.operation.step == "wait for the controller of StatefulSets"


UPGRADED = replace(DEFAULTS, image="node:2")
OTHER_REDIS = replace(DEFAULTS, redis_image="redis:8")


def test_an_upgraded_operator_waits_for_its_turn() -> None:
    waiting = desired(cluster(), defaults=UPGRADED, waits_for="apps/other")
    assert plan(observed(WISH), waiting) == Plan()
    action = plan(observed(WISH), replace(waiting, waits_for="")).action
    assert isinstance(action, Apply)


def test_only_what_an_upgraded_operator_wants_by_itself_is_its_upgrade() -> None:
    upgraded = replace(WISH, defaults=UPGRADED)
    assert is_upgrade(Situation(observed(WISH), upgraded))
    assert is_upgrade(Situation(observed(WISH), replace(WISH, defaults=OTHER_REDIS)))
    assert not is_upgrade(Situation(observed(WISH), WISH))
    assert not is_upgrade(Situation(observed(upgraded), upgraded))
    assert not is_upgrade(Situation(Observed(), upgraded))
    asked = desired(cluster(generation=2, image="mine:3"))
    assert not is_upgrade(Situation(observed(WISH), asked))


def test_what_the_resource_asks_for_does_not_wait_for_a_turn() -> None:
    asked = desired(
        cluster(generation=2, image="mine:3"), defaults=UPGRADED, waits_for="apps/other"
    )
    wish = replace(asked, defaults=DEFAULTS)
    seen = observed(wish)
    seen = replace(seen, objects={**seen.objects, **set_of_nodes(WISH)})
    action = plan(seen, asked).action
    assert isinstance(action, Apply)
    assert action.manifest["spec"]["template"]["spec"]["containers"][0]["image"] == "mine:3"


def set_of_nodes(wish: Desired) -> dict[tuple[str, str], Any]:
    """The StatefulSet of the nodes as applied for a wish."""
    key = ("StatefulSet", "demo")
    return {key: observed(wish).objects[key]}


def test_scaling_during_another_clusters_turn_keeps_the_old_template() -> None:
    seen = observed(FIVE, pods=3)
    action = plan(seen, replace(FIVE, defaults=UPGRADED, waits_for="apps/other")).action
    assert isinstance(action, Apply)
    assert action.manifest["spec"]["replicas"] == 4
    assert action.manifest["spec"]["template"]["spec"]["containers"][0]["image"] == "node:1"


# --- Volumes --------------------------------------------------------------------------------------

LARGER = desired(cluster(storage={"size": "4Gi"}))


def test_every_claim_grows_and_then_the_stateful_set_is_made_again_around_its_pods() -> None:
    seen = with_set(observed(LARGER), claim_size="2Gi")
    assert plan(seen, LARGER).action == ResizeClaim(name="data-demo-0", size="4Gi")
    grown = replace(seen, claims=tuple(claim(o, size="4096Mi") for o in range(3)))
    assert plan(grown, LARGER).action == Delete(
        kind="StatefulSet", name="demo", uid="set-uid", orphan=True
    )
    gone = replace(grown, stateful_set=None, pods=grown.pods[:2])
    action = plan(gone, LARGER).action
    assert isinstance(action, Apply)
    assert action.manifest["spec"]["replicas"] == 3  # a member whose pod is away is not forgotten


def test_the_volume_of_redis_grows_as_well() -> None:
    wish = desired(cluster(redis={"managed": {"storage": {"size": "3Gi"}}}))
    small = claim(0, name="data-demo-redis-0")
    assert plan(observed(wish, redis_claims=(small,)), wish).action == ResizeClaim(
        name="data-demo-redis-0", size="3Gi"
    )


def too_small(seen: Observed) -> Observed:
    """Neither the claims nor the StatefulSet have the size that is wanted."""
    return with_set(seen, claim_size="2Gi")


def test_volumes_that_may_never_grow_hold_up_nothing_else() -> None:
    joining = with_pods(with_nodes(observed(LARGER), demo_2=empty(2)), pod(2, ready=False))
    assert isinstance(plan(too_small(joining), LARGER).action, AddMember)
    dead = with_pods(silent(observed(LARGER), 2), pod(2, ready=False, revision="rev-1"))
    assert restarted(too_small(dead), LARGER) == "demo-2"
    old = with_pods(observed(LARGER), pod(2, revision="rev-1"))
    assert restarted(too_small(old), LARGER) == "demo-2"
    more = desired(cluster(storage={"size": "4Gi"}, replicas=5))
    action = plan(too_small(observed(more, pods=3)), more).action
    assert isinstance(action, Apply)
    assert action.manifest["spec"]["replicas"] == 4


@pytest.mark.parametrize("dead", [(2,), (1, 2)], ids=["a node", "the quorum"])
def test_volumes_grow_while_nodes_are_waited_for_that_may_lack_room(dead: tuple[int, ...]) -> None:
    seen = silent(observed(LARGER), *dead) if len(dead) == 1 else leaderless(*dead)
    seen = replace(seen, objects=observed(LARGER).objects)
    waiting = plan(with_set(replace(seen, claims=()), claim_size="4Gi"), LARGER)
    decision = plan(too_small(seen), LARGER)
    assert decision.action == ResizeClaim(name="data-demo-0", size="4Gi")
    assert waiting.action is None
    assert (decision.operation, decision.trouble) == (waiting.operation, waiting.trouble)


def test_a_mended_template_is_applied_before_volumes_grow() -> None:
    wish = desired(cluster(storage={"size": "4Gi"}, podTemplate={"nodeSelector": {"zone": "a"}}))
    action = plan(too_small(observed(WISH)), wish).action
    assert isinstance(action, Apply)
    spec = action.manifest["spec"]
    assert spec["template"]["spec"]["nodeSelector"] == {"zone": "a"}
    requests = spec["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]
    assert requests == {"storage": "2Gi"}  # it cannot be told another size


def test_a_claim_grows_once_it_has_a_volume_whatever_its_stateful_set_says() -> None:
    claims = tuple(claim(o, bound=False) for o in range(3))
    assert plan(observed(LARGER, claims=claims), LARGER).action is None
    bound = observed(LARGER, claims=(*claims[:2], claim(2)))
    assert plan(bound, LARGER).action == ResizeClaim(name="data-demo-2", size="4Gi")


def test_nothing_grows_while_a_name_is_taken() -> None:
    foreign = {"metadata": {"name": "demo", "uid": "x", "labels": {"app": "other"}}}
    seen = too_small(observed(LARGER))
    seen = replace(seen, objects={**seen.objects, ("StatefulSet", "demo"): foreign})
    assert plan(seen, LARGER).action is None


# --- Loss -----------------------------------------------------------------------------------------


def leaderless(*dead: int) -> Observed:
    """Nobody leads; the dead do not answer."""
    seen = observed(WISH)
    members = tuple(replace(one, silent_ms=None) for one in seen.nodes["demo-0"].members)
    nodes = {f"demo-{o}": node(o, members=members, leader=9) for o in range(3) if o not in dead}
    unready = tuple(pod(o, ready=False) for o in range(3))
    return replace(seen, nodes=nodes, pods=unready)


def test_an_election_is_waited_for() -> None:
    decision = plan(leaderless(2), WISH)
    assert (decision.action, decision.trouble) == (None, None)
    assert decision.operation is not None


def test_a_lost_quorum_is_reported_with_what_to_do_and_nothing_is_touched() -> None:
    decision = plan(leaderless(1, 2), WISH)
    assert decision.action is None
    assert decision.trouble is not None
    assert decision.trouble.reason == "QuorumLost"
    assert "demo-1, demo-2 of 3 voters" in decision.trouble.message


def test_without_a_leader_only_old_pods_that_do_not_answer_are_replaced() -> None:
    seen = leaderless(2)
    seen = replace(seen, pods=tuple(pod(o, ready=False, revision="rev-1") for o in range(3)))
    assert restarted(seen) == "demo-2"
    assert restarted(with_pods(seen, pod(2, ready=False))) is None


def test_a_wiped_node_joins_under_its_new_id() -> None:
    seen = with_pods(with_nodes(observed(WISH), demo_2=empty(2)), pod(2, ready=False))
    action = plan(seen, WISH).action
    assert isinstance(action, AddMember)
    assert action.member.id == "new-2"


def test_a_pod_is_forced_away_only_when_its_machine_is_gone() -> None:
    ending = pod(1, ready=False, terminating=True, overdue=True)
    seen = with_pods(observed(WISH), ending)
    assert plan(seen, WISH).action is None
    gone = with_pods(seen, replace(ending, host_gone=True))
    assert plan(gone, WISH).action == Delete(kind="Pod", name="demo-1", uid="pod-uid-1", force=True)


def test_the_pod_of_redis_is_forced_away_when_its_machine_is_gone() -> None:
    ending = replace(REDIS_POD, ready=False, terminating=True, overdue=True)
    seen = observed(WISH, redis_pods=(ending,))
    assert plan(seen, WISH).action is None
    gone = replace(seen, redis_pods=(replace(ending, host_gone=True),))
    assert plan(gone, WISH).action == Delete(
        kind="Pod", name="demo-redis-0", uid="redis-uid", force=True
    )


REPLACE = desired(cluster(annotations={"distsync.dev/replace": "demo-1"}))


def test_a_replacement_is_written_down_before_its_request_is_taken_off() -> None:
    seen = observed(WISH)
    assert plan(seen, REPLACE).action == MarkReplacing(claim="data-demo-1", uid="claim-uid-1")
    marked = replace(seen, claims=(claim(0), claim(1, replacing=True), claim(2)))
    assert plan(marked, REPLACE).action == ForgetReplace(value="demo-1")


def test_a_replacement_takes_member_then_volume_then_pod() -> None:
    marked = observed(WISH, claims=(claim(0), claim(1, replacing=True), claim(2)))
    assert plan(marked, WISH).action == Drain(pod="demo-1")
    assert isinstance(plan(silent(marked, 1), WISH).action, RemoveMember)
    others = (member(0), member(2))
    nodes = {f"demo-{o}": node(o, members=others) for o in (0, 2)}
    nodes["demo-1"] = Node(state="removed", member_id="id-1", cluster_id=UID)
    removed = replace(marked, nodes=nodes)
    assert plan(removed, WISH).action == Delete(
        kind="PersistentVolumeClaim", name="data-demo-1", uid="claim-uid-1"
    )
    going = replace(
        removed, claims=(claim(0), claim(1, replacing=True, terminating=True), claim(2))
    )
    assert restarted(going) == "demo-1"


def test_a_replacement_holds_up_nothing_that_the_quorum_it_waits_for_needs() -> None:
    claims = (claim(0), claim(1), claim(2, replacing=True))
    marked = silent(observed(WISH, claims=claims), 1)
    assert plan(marked, WISH).action is None  # two voters are left, and both are needed
    wiped = with_nodes(marked, demo_1=empty(1))
    assert isinstance(plan(wiped, WISH).action, AddMember)
    assert restarted(with_pods(marked, pod(1, ready=False, revision="rev-1"))) == "demo-1"


@pytest.mark.parametrize("name", ["demo-9", "other-1", "demo"])
def test_a_replacement_of_what_is_no_pod_is_refused(name: str) -> None:
    wish = desired(cluster(annotations={"distsync.dev/replace": name}))
    decision = plan(observed(WISH), wish)
    assert decision.action is None
    assert decision.trouble is not None
    assert decision.trouble.reason == "BadReplace"


def test_a_replacement_that_would_lose_the_quorum_is_refused() -> None:
    decision = plan(silent(observed(WISH), 2), REPLACE)
    assert decision.action is None
    assert decision.trouble is not None
    assert decision.trouble.reason == "QuorumAtRisk"


def test_nodes_with_another_secret_are_named_and_left_running() -> None:
    seen = with_nodes(observed(WISH), demo_1=Node(state="refused"))
    decision = plan(seen, WISH)
    assert decision.action is None
    assert decision.trouble is not None
    assert decision.trouble.reason == "SecretMismatch"
