"""What kinds of trouble a run is made of. The seed chooses the profile and everything in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

NETWORK = {
    "partition": 3,
    "isolate_leader": 3,
    "one_way_cut": 3,
    "lossy": 2,
    "slow_network": 2,
    "cut_client": 1,
}
PROCESSES = {"crash": 4, "crash_writing": 3, "crash_all": 1, "pause": 4}
DISKS = {"slow_disk": 2, "full_disk": 1, "stall_leader": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Weights of the faults, and the shape of the cluster."""

    name: str
    faults: Mapping[str, int]
    nodes: tuple[int, ...] = (3, 3, 5)
    clients: int = 8
    chaos_s: float = 14.0
    fault_gap_ms: tuple[int, int] = (150, 1_500)
    forming: bool = False  # start from empty nodes that find each other
    snapshot_entries: tuple[int, ...] = (60, 400, 50_000)
    retained_entries: tuple[int, ...] = (0, 20, 5_000)
    snapshot_chunk_bytes: tuple[int, ...] = (300, 4_000, 1 << 20)
    pause_ms: tuple[int, int] = (100, 3_000)
    must_happen: tuple[str, ...] = field(default=())


CHAOS = Profile(
    name="chaos",
    faults={**NETWORK, **PROCESSES, **DISKS, "transfer": 1},
    must_happen=("message_lost", "message_repeated", "message_delayed", "crash", "pause"),
)
MEMBERSHIP = Profile(
    name="membership",
    faults={**NETWORK, **PROCESSES, "wipe": 3, "transfer": 3, "membership": 10},
    nodes=(3, 4, 5),
    chaos_s=18.0,
    must_happen=("config_add_learner", "config_promote", "config_remove", "transfer"),
)
FORMING = Profile(
    name="forming",
    faults={**NETWORK, "crash": 3, "wipe": 4, "pause": 3, "crash_writing": 3},
    nodes=(3, 3, 4, 5),
    chaos_s=9.0,
    clients=5,
    fault_gap_ms=(30, 700),
    forming=True,
    must_happen=("genesis", "wipe", "wipe_founder"),
)
SNAPSHOTS = Profile(
    name="snapshots",
    faults={**NETWORK, **PROCESSES, "crash_snapshot": 5, "slow_disk": 2, "transfer": 1},
    snapshot_entries=(10, 25, 60),
    retained_entries=(0, 0, 5),
    snapshot_chunk_bytes=(150, 300, 1_000),
    must_happen=("snapshot_installed", "crash_after_snapshot"),
)
CLOCKS = Profile(
    name="clocks",
    faults={
        "pause": 8,
        "isolate_leader": 4,
        "one_way_cut": 2,
        "crash": 2,
        "drain": 2,
        "transfer": 4,
    },
    pause_ms=(300, 6_000),
    must_happen=("pause", "client_paused", "drain"),
)
DISK = Profile(
    name="disk",
    faults={
        "crash": 4,
        "crash_writing": 8,
        "crash_all": 3,
        "slow_disk": 4,
        "full_disk": 4,
        "stall_leader": 4,
    },
    must_happen=("unsynced_write_lost", "disk_full_write", "crash_all", "leader_stalled"),
)

PROFILES = {
    profile.name: profile for profile in (CHAOS, MEMBERSHIP, FORMING, SNAPSHOTS, CLOCKS, DISK)
}
# Chaos comes twice as often: it mixes everything.
_ROTATION = (CHAOS, MEMBERSHIP, SNAPSHOTS, CLOCKS, CHAOS, DISK, FORMING)


def profile_of(seed: int, name: str | None = None) -> Profile:
    """Return the profile of a seed, or the one named."""
    if name is not None:
        return PROFILES[name]
    return _ROTATION[seed % len(_ROTATION)]
