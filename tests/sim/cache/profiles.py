"""What kinds of trouble a run of the cache is made of; the seed chooses the profile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from distsync_node.cache.scripts import GRACE_MS
from distsync_node.cache.types import Durability
from sim.network import USUAL_DELAY_US

NETWORK = {"partition": 3, "one_way_cut": 4, "cut_pair": 4, "lossy": 4, "slow_network": 2}
PROCESSES = {"crash": 4, "pause": 4, "leader_change": 1}
RING = {"drain": 3, "remove": 1, "join": 3}
REDIS = {"redis_down": 1, "redis_full": 1, "redis_slow": 2, "redis_flaky": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Weights of the faults, and the shape of the cluster."""

    name: str
    faults: Mapping[str, int]
    durability: tuple[Durability, ...] = (
        Durability.MIRRORED,
        Durability.MIRRORED,
        Durability.WRITE_THROUGH,
    )
    mixed: bool = False  # each process has a durability of its own
    nodes: tuple[int, ...] = (3, 3, 4, 5)
    chaos_s: float = 10.0
    fault_gap_ms: tuple[int, int] = (100, 1_200)
    pause_ms: tuple[int, int] = (100, 4_000)
    one_at_a_time: bool = False  # who dies does so while all are settled: no line is lost
    think_ms: tuple[int, int] = (1, 60)
    patience_ms: tuple[int, ...] = (3_000, 3_000, 400)  # of clients, for an answer
    deletions: float = 0.06  # of the calls of clients,
    writes: float = 0.44  # and these; the others are reads
    grace_ms: int = GRACE_MS  # for which Redis remembers what has no value
    again: float = 0.0  # how often a client turns to the node and key that it has just had
    keys: tuple[int, ...] = (1, 3, 5)
    delay_us: tuple[int, int] = USUAL_DELAY_US  # of messages
    must_happen: tuple[str, ...] = ()


CHAOS = Profile(
    name="chaos",
    faults={**NETWORK, **PROCESSES, **RING, **REDIS},
    must_happen=("message_lost", "message_repeated", "crash", "pause", "drain", "redis_unknown"),
)
NETWORKS = Profile(
    name="network",
    faults={**NETWORK, "pause": 1},
    must_happen=("message_lost", "message_cut", "message_delayed"),
)
RINGS = Profile(
    name="ring",
    faults={**RING, "crash": 4, "leader_change": 1, "pause": 2, "lossy": 3, "redis_flaky": 1},
    nodes=(3, 4, 5),
    fault_gap_ms=(50, 900),
    must_happen=("drain", "join", "crash", "remove", "epoch_skipped"),
)
SINGLE = Profile(
    name="single",
    faults={"crash": 6, "lossy": 2, "slow_network": 1, "redis_slow": 1},
    durability=(Durability.MIRRORED,),
    fault_gap_ms=(50, 1_500),
    chaos_s=24.0,
    think_ms=(60, 500),
    one_at_a_time=True,
    must_happen=("crash", "not_settled"),
)
LOCAL = Profile(
    name="local",
    faults={"lossy": 4, "drain": 2, "join": 2, "redis_flaky": 1, "cut_pair": 1, "pause": 1},
    durability=(Durability.LOCAL,),
    must_happen=("drain", "join", "cleaned_on_idle", "evicted_dirty"),
)
REDISES = Profile(
    name="redis",
    faults={**REDIS, "crash": 2, "join": 1, "lossy": 1},
    must_happen=("redis_refused", "redis_unknown", "redis_had_no_room", "crash"),
)

DEATHS = Profile(
    name="deaths",
    faults={"crash_two": 6, "crash": 1, "lossy": 2, "redis_flaky": 3},
    durability=(Durability.MIRRORED,),
    nodes=(4, 5),
    fault_gap_ms=(800, 3_000),
    keys=(5, 8),
    must_happen=("crash",),
)
LEASES = Profile(
    name="leases",
    faults={"cut_pair": 6, "pause": 2, "one_way_cut": 2},
    fault_gap_ms=(200, 900),
    keys=(1, 2),
    delay_us=(20_000, 240_000),
    must_happen=("pair_cut",),
)

TWICE = Profile(
    name="twice",
    faults={"partition": 4, "remove": 3, "redis_flaky": 8},
    durability=(Durability.WRITE_THROUGH,),
    nodes=(3,),
    keys=(2, 3),
    fault_gap_ms=(50, 600),
    must_happen=("redis_twice",),
)
IMPATIENT = Profile(
    name="impatient",
    faults={"lossy": 4, "slow_network": 3, "cut_pair": 2, "join": 1, "redis_slow": 1},
    durability=(Durability.MIRRORED, Durability.LOCAL),
    fault_gap_ms=(50, 600),
    keys=(2, 3),
    delay_us=(1_000, 60_000),
    chaos_s=8.0,
    think_ms=(20, 160),
    patience_ms=(40, 150, 600),
    again=0.6,
    must_happen=("message_delayed", "gave_up"),
)

FORGETFUL = Profile(
    name="forgetful",
    faults={"pause": 8, "partition": 4, "crash": 1, "join": 2, "lossy": 1, "redis_flaky": 1},
    durability=(Durability.MIRRORED, Durability.MIRRORED, Durability.LOCAL),
    grace_ms=7_000,  # longer than any command is under way, and shorter than a stop may last
    pause_ms=(1_000, 16_000),
    chaos_s=30.0,
    fault_gap_ms=(200, 2_500),
    think_ms=(200, 3_000),
    deletions=0.2,
    writes=0.25,
    again=0.4,
    keys=(4, 7),
    must_happen=("redis_forgot", "pause"),
)

MIXED = Profile(
    name="mixed",
    faults={"drain": 4, "crash": 1, "lossy": 3, "redis_flaky": 1, "cut_pair": 1, "pause": 1},
    durability=(Durability.LOCAL,),  # what is judged is what that promises
    mixed=True,
    fault_gap_ms=(100, 1_000),
    again=0.5,
    must_happen=("drain", "cleaned_on_idle"),
)

ORDERLY = Profile(
    name="orderly",
    faults={"roll": 6, "redis_slow": 1},
    durability=(Durability.MIRRORED, Durability.WRITE_THROUGH),
    nodes=(3, 4, 5),
    fault_gap_ms=(50, 400),
    patience_ms=(8_000,),
    writes=0.6,
    must_happen=("roll", "write_moved"),
)

_ALL = (
    *(CHAOS, NETWORKS, RINGS, SINGLE, LOCAL, REDISES, DEATHS),
    *(LEASES, IMPATIENT, TWICE, FORGETFUL, MIXED, ORDERLY),
)
PROFILES = {profile.name: profile for profile in _ALL}
_ROTATION = (
    *(CHAOS, RINGS, NETWORKS, SINGLE, DEATHS, LOCAL),
    *(LEASES, CHAOS, REDISES, IMPATIENT, TWICE, FORGETFUL, MIXED, ORDERLY),
)


def profile_of(seed: int, name: str | None = None) -> Profile:
    """Return the profile of a seed, or the one named."""
    return PROFILES[name] if name is not None else _ROTATION[seed % len(_ROTATION)]
