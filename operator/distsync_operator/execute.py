"""Carry out one action."""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

from distsync_operator import names
from distsync_operator.errors import NodeError
from distsync_operator.kube import Kube
from distsync_operator.model import (
    Action,
    AddMember,
    Apply,
    Archive,
    Bootstrap,
    Delete,
    Drain,
    ForgetReplace,
    MarkReplacing,
    Pod,
    PromoteMember,
    RemoveMember,
    ResizeClaim,
    Transfer,
)
from distsync_operator.nodes import Nodes
from distsync_operator.spec import Cluster, Manifest


async def execute(
    action: Action, cluster: Cluster, kube: Kube, nodes: Nodes | None, pods: Mapping[str, Pod]
) -> Manifest | None:
    """Carry out an action; whatever interrupts it, the next pass sees what came of it.

    Returns the object that an Apply led to.

    Raises:
        KubeError, NodeError: it was refused, or nobody knows what came of it.
    """
    match action:
        case Apply(manifest=manifest):
            return await kube.apply(manifest)
        case Delete():
            await kube.delete(
                action.kind,
                cluster.namespace,
                action.name,
                uid=action.uid,
                orphan=action.orphan,
                force=action.force,
            )
        case ResizeClaim(name=name, size=size):
            change: Manifest = {"spec": {"resources": {"requests": {"storage": size}}}}
            await kube.patch("PersistentVolumeClaim", cluster.namespace, name, change)
        case MarkReplacing(claim=name, uid=uid):
            change = {"metadata": {"uid": uid, "annotations": {names.REPLACING_ANNOTATION: "true"}}}
            await kube.patch("PersistentVolumeClaim", cluster.namespace, name, change)
        case ForgetReplace():
            change = {"metadata": {"annotations": {names.REPLACE_ANNOTATION: None}}}
            await kube.patch(names.KIND, cluster.namespace, cluster.name, change)
        case _:
            if nodes is None:
                raise NodeError("", "the secret that nodes share does not exist yet")
            await _ask(action, nodes, pods)
    return None


async def _ask(
    action: Bootstrap | AddMember | PromoteMember | RemoveMember | Transfer | Drain | Archive,
    nodes: Nodes,
    pods: Mapping[str, Pod],
) -> None:
    match action:
        case Bootstrap(cluster_id=cluster_id, members=members):
            for name in action.pods:
                await nodes.bootstrap(pods[name], cluster_id, members)
        case AddMember(via=via, member=member, config_index=index):
            await nodes.add(pods[via], member, index)
        case PromoteMember(via=via, member=member, config_index=index):
            await nodes.promote(pods[via], member, index)
        case RemoveMember(via=via, member=member, config_index=index):
            await nodes.remove(pods[via], member, index)
        case Transfer(via=via, member=member):
            await nodes.transfer(pods[via], member)
        case Drain(pod=name):
            await nodes.drain(pods[name])
        case Archive(pod=name):
            await nodes.archive(pods[name])
        case _:
            assert_never(action)


def describe(action: Action) -> str:
    """Say what an action does, for an Event."""
    match action:
        case Apply(manifest=manifest):
            size = (manifest.get("spec") or {}).get("replicas")
            of = f" of {size}" if size is not None else ""
            return f"apply {manifest['kind']} {manifest['metadata']['name']}{of}"
        case Delete(kind=kind, name=name, force=force):
            return f"delete {kind} {name}{' by force' if force else ''}"
        case ResizeClaim(name=name, size=size):
            return f"resize {name} to {size}"
        case MarkReplacing(claim=claim):
            return f"replace the member on {claim}"
        case ForgetReplace(value=value):
            return f"take note of the request to replace {value}"
        case Bootstrap(members=members):
            return f"create the cluster of {', '.join(member.name for member in members)}"
        case AddMember(member=member):
            return f"add {member.name} as a learner"
        case PromoteMember(member=member):
            return f"let {member.name} vote"
        case RemoveMember(member=member):
            return f"remove {member.name} from the cluster"
        case Transfer(member=member):
            return f"hand leadership to {member.name}"
        case Drain(pod=pod):
            return f"drain {pod}"
        case Archive(pod=pod):
            return f"archive the data of {pod}"
        case _:
            assert_never(action)
