"""The StatefulSets: created, corrected, and recreated when their volumes grow."""

from __future__ import annotations

from distsync_operator import names
from distsync_operator.model import (
    Action,
    Claim,
    Delete,
    Operation,
    Plan,
    ResizeClaim,
    StatefulSet,
    Trouble,
    key_of,
)
from distsync_operator.plan.objects import apply
from distsync_operator.plan.situation import MAX_REPLICAS, Situation
from distsync_operator.quantity import parse_quantity
from distsync_operator.resources.common import keyed_digest
from distsync_operator.resources.redis import redis_stateful_set
from distsync_operator.resources.secret import secret_of
from distsync_operator.resources.statefulset import stateful_set
from distsync_operator.spec import ManagedRedis, Manifest


def redis(situation: Situation) -> Plan | None:
    """Keep the managed Redis' StatefulSet as it should be."""
    managed = situation.spec.redis.managed
    if managed is None:
        return None
    wanted = redis_manifest(situation, managed)
    return _create_or_correct(situation, situation.observed.redis_set, wanted)


def nodes(situation: Situation) -> Plan | None:
    """Create the nodes' StatefulSet, or make it what it should be, its size aside."""
    observed = situation.observed
    live = observed.stateful_set
    if observed.redis_url is None and live is None:
        return Plan(trouble=missing_url(situation))
    if live is None:
        operation = Operation(type="Create", target=situation.name, step="create pods")
        wanted = nodes_manifest(situation, _first_replicas(situation))
        return Plan(action=apply(wanted), operation=operation)
    return _create_or_correct(situation, live, nodes_manifest(situation, live.replicas))


def grow(situation: Situation) -> Plan | None:
    """Make volumes larger that are smaller than wanted."""
    observed, managed = situation.observed, situation.spec.redis.managed
    growth = _growth(observed.stateful_set, observed.claims, situation.spec.storage.size)
    if growth is None and managed is not None:
        growth = _growth(observed.redis_set, observed.redis_claims, managed.storage.size)
    return growth


def nodes_manifest(situation: Situation, replicas: int) -> Manifest:
    """Return the StatefulSet of that many nodes, as far as it may be changed now."""
    wanted = stateful_set(
        situation.desired.cluster,
        situation.desired.defaults,
        replicas=replicas,
        redis_hash=_redis_hash(situation, situation.name),
    )
    return _allowed(situation, wanted)


def redis_manifest(situation: Situation, managed: ManagedRedis) -> Manifest:
    """Return the StatefulSet of the managed Redis, as far as it may be changed now."""
    wanted = redis_stateful_set(
        situation.desired.cluster,
        managed,
        situation.desired.defaults,
        redis_hash=_redis_hash(situation, names.redis(situation.name)),
    )
    return _allowed(situation, wanted)


def missing_url(situation: Situation) -> Trouble | None:
    """Say that the Secret with the URL of Redis is missing, if it is."""
    if situation.observed.redis_url is not None:
        return None
    external = situation.spec.redis.external
    if external is None:
        return None  # the managed one's Secret is about to be made
    wanted = external.url_secret_ref
    return Trouble(
        reason="SecretMissing",
        message=f"Secret {wanted.name} with the key {wanted.key} is not there; create it with the"
        " URL of Redis",
    )


def _redis_hash(situation: Situation, set_name: str) -> str:
    """Return what tells the URL of Redis, with its password, from another.

    A Secret that is gone for a while is no reason to replace pods.
    """
    objects, url = situation.observed.objects, situation.observed.redis_url
    if url is not None:
        return keyed_digest(url, secret_of(objects, situation.name) or "")
    live = objects.get(("StatefulSet", set_name), {})
    template = live.get("spec", {}).get("template", {}).get("metadata", {})
    return str(template.get("annotations", {}).get(names.REDIS_HASH_ANNOTATION, ""))


def _first_replicas(situation: Situation) -> int:
    """Return with how many pods to begin: those that run already or have a member (the StatefulSet
    is being recreated), else at least one for each volume, since a quorum may be on them."""
    if situation.pods:
        members = [situation.ordinal(member) for member in situation.members]
        known = [*situation.pods, *(ordinal for ordinal in members if ordinal is not None)]
        return min(MAX_REPLICAS, max(known) + 1)
    kept = [claim.ordinal + 1 for claim in situation.observed.claims if not claim.terminating]
    return min(MAX_REPLICAS, max([situation.spec.replicas, *kept]))


def _create_or_correct(
    situation: Situation, live: StatefulSet | None, wanted: Manifest
) -> Plan | None:
    name = wanted["metadata"]["name"]
    if live is None:
        operation = Operation(type="Create", target=name, step="create pods")
        return Plan(action=apply(wanted), operation=operation)
    if live.terminating:
        return Plan(operation=Operation(type="Create", target=name, step="wait for deletion"))
    body = situation.observed.objects[("StatefulSet", name)]
    if situation.is_as_wanted(body, wanted) or _is_put_off(situation, body, wanted):
        return None if live.update_revision else _unseen(name)
    operation = Operation(type="Update", target=name, step="update template")
    return Plan(action=apply(wanted), operation=operation)


def _unseen(name: str) -> Plan:
    """Until its controller has seen a StatefulSet nobody knows which pods are of its revision."""
    step = "wait for the controller of StatefulSets"
    return Plan(operation=Operation(type="Update", target=name, step=step))


def _allowed(situation: Situation, wanted: Manifest) -> Manifest:
    """Return what of a wanted StatefulSet can be asked for now.

    What it was told of its claims cannot be changed (see `_growth`), and a new template that only
    this version of the operator wants has to wait for its turn.
    """
    body = situation.observed.objects.get(("StatefulSet", wanted["metadata"]["name"]))
    if body is None:
        return wanted
    spec = {**wanted["spec"], "volumeClaimTemplates": body["spec"]["volumeClaimTemplates"]}
    if _is_put_off(situation, body, wanted):
        spec["template"] = body["spec"]["template"]
    return {**wanted, "spec": spec}


def is_upgrade(situation: Situation) -> bool:
    """Whether pods are to be replaced, and only because this version of the operator wants it."""
    observed, managed = situation.observed, situation.spec.redis.managed
    wanted = []
    if observed.stateful_set is not None:
        wanted.append(nodes_manifest(situation, observed.stateful_set.replicas))
    if observed.redis_set is not None and managed is not None:
        wanted.append(redis_manifest(situation, managed))
    for manifest in wanted:
        body = observed.objects[key_of(manifest)]
        is_wish = _is_same_wish(situation, body, manifest)
        if is_wish and not situation.is_as_wanted(body, manifest):
            return True
    return False


def _is_put_off(situation: Situation, body: Manifest, wanted: Manifest) -> bool:
    """Whether a change is one for which it is another cluster's turn."""
    return bool(situation.desired.waits_for) and _is_same_wish(situation, body, wanted)


def _is_same_wish(situation: Situation, body: Manifest, wanted: Manifest) -> bool:
    """Whether what was applied is what the resource (and what it names) wants now, so that a change
    comes from a new version of the operator."""
    noted = (body["metadata"].get("annotations") or {}).get(names.GENERATION_ANNOTATION)
    running = body["spec"]["template"]["metadata"].get("annotations") or {}
    asked = wanted["spec"]["template"]["metadata"]["annotations"]
    told = (names.RESTARTED_AT_ANNOTATION, names.REDIS_HASH_ANNOTATION)
    is_same_wish = all(running.get(name) == asked.get(name) for name in told)
    return is_same_wish and noted == str(situation.desired.cluster.generation)


def _growth(live: StatefulSet | None, claims: tuple[Claim, ...], size: str) -> Plan | None:
    """Grow every claim, then have the StatefulSet made again: it cannot be told another size.

    A claim without a volume cannot grow yet; it is asked again once it has one.
    """
    action: Action
    for claim in claims:
        if claim.bound and not claim.terminating and _is_less(claim.size, size):
            action = ResizeClaim(name=claim.name, size=size)
            operation = Operation(type="GrowVolumes", target=claim.name, step="resize claim")
            return Plan(action=action, operation=operation)
    if live is None or live.terminating or not _is_less(live.claim_size, size):
        return None
    action = Delete(kind="StatefulSet", name=live.name, uid=live.uid, orphan=True)
    operation = Operation(type="GrowVolumes", target=live.name, step="recreate StatefulSet")
    return Plan(action=action, operation=operation)


def _is_less(size: str, than: str) -> bool:
    have, wanted = parse_quantity(size), parse_quantity(than)
    return have is not None and wanted is not None and have < wanted
