from distsync.command.bootstrap import plan_creation
from distsync.command.calls import Identity
from distsync.command.cluster_dir import Genesis, GenesisMember


def empty(number: int, member_id: str | None = None) -> Identity:
    return node(number, "uninitialised", member_id=member_id)


def node(
    number: int, state: str, *, member_id: str | None = None, cluster_id: str | None = None
) -> Identity:
    return Identity(
        member_id=member_id or f"id-{number}",
        name=f"node-{number}",
        state=state,
        cluster_id=cluster_id,
        peer_url=f"http://127.0.0.1:{9100 + number}",
        client_url=f"http://127.0.0.1:{9000 + number}",
    )


def cluster(*nodes: Identity) -> dict[str, Identity]:
    return {who.name: who for who in nodes}


def genesis(cluster_id: str, *nodes: Identity) -> Genesis:
    return Genesis(
        cluster_id=cluster_id,
        members=tuple(
            GenesisMember(
                id=who.member_id, name=who.name, peer_url=who.peer_url, client_url=who.client_url
            )
            for who in nodes
        ),
    )


def test_a_cluster_is_created_when_every_node_is_empty() -> None:
    nodes = cluster(empty(1), empty(2), empty(3))
    creation = plan_creation(nodes, None)
    assert creation is not None
    assert creation.names == ("node-1", "node-2", "node-3")
    assert creation.genesis == genesis(creation.genesis.cluster_id, *nodes.values())


def test_two_clusters_get_two_ids() -> None:
    nodes = cluster(empty(1))
    first, second = plan_creation(nodes, None), plan_creation(nodes, None)
    assert first is not None
    assert second is not None
    assert first.genesis.cluster_id != second.genesis.cluster_id


def test_one_node_with_a_cluster_forbids_it() -> None:
    nodes = cluster(empty(1), node(2, "member", cluster_id="c"), empty(3))
    assert plan_creation(nodes, None) is None


def test_a_node_that_is_joining_forbids_it() -> None:
    assert plan_creation(cluster(empty(1), node(2, "joining")), None) is None


def test_a_removed_node_forbids_it() -> None:
    assert plan_creation(cluster(empty(1), node(2, "removed", cluster_id="c")), None) is None


def test_nothing_is_created_when_all_have_it() -> None:
    nodes = cluster(node(1, "member", cluster_id="c"), node(2, "member", cluster_id="c"))
    assert plan_creation(nodes, genesis("c", *nodes.values())) is None


def test_an_interrupted_creation_is_finished_with_the_same_words() -> None:
    first = node(1, "member", cluster_id="c")
    nodes = cluster(first, empty(2), empty(3))
    written_down = genesis("c", *nodes.values())
    creation = plan_creation(nodes, written_down)
    assert creation is not None
    assert creation.genesis is written_down
    assert creation.names == ("node-2", "node-3")


def test_a_creation_that_reached_nobody_is_begun_with_the_same_words() -> None:
    nodes = cluster(empty(1), empty(2), empty(3))
    written_down = genesis("c", *nodes.values())
    creation = plan_creation(nodes, written_down)
    assert creation is not None
    assert creation.genesis is written_down
    assert creation.names == ("node-1", "node-2", "node-3")


def test_a_wiped_node_is_not_given_the_first_configuration_of_its_old_id() -> None:
    first = node(1, "member", cluster_id="c")
    written_down = genesis("c", first, empty(2), empty(3))
    nodes = cluster(first, empty(2, member_id="another"), empty(3))
    creation = plan_creation(nodes, written_down)
    assert creation is not None
    assert creation.names == ("node-3",)


def test_another_cluster_than_the_one_written_down_is_left_alone() -> None:
    nodes = cluster(node(1, "member", cluster_id="other"), empty(2))
    assert plan_creation(nodes, genesis("c", *nodes.values())) is None


def test_when_all_nodes_were_wiped_a_new_cluster_is_created() -> None:
    written_down = genesis("c", empty(1, "old-1"), empty(2, "old-2"))
    creation = plan_creation(cluster(empty(1), empty(2)), written_down)
    assert creation is not None
    assert creation.genesis.cluster_id != "c"


def test_an_added_node_that_is_empty_is_left_to_join() -> None:
    members = (node(1, "member", cluster_id="c"), node(2, "member", cluster_id="c"))
    nodes = cluster(*members, empty(3))
    assert plan_creation(nodes, genesis("c", *members)) is None
