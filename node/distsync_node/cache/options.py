"""Durations and limits of the cache."""

from __future__ import annotations

from dataclasses import dataclass

from distsync_node.cache.types import Durability
from distsync_node.cluster.leases import LeaseOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheOptions:
    """Durations in milliseconds, sizes in bytes."""

    durability: Durability = Durability.MIRRORED
    durability_by_prefix: tuple[tuple[str, Durability], ...] = ()
    copy_lease_ms: int = 1_500
    renew_ms: int = 400
    drift_ms: int = 50  # plus 1 % of what is measured
    node_lease_granted_ms: int = LeaseOptions().granted_ms  # at who granted it
    resend_ms: int = 120
    mirror_wait_ms: int = 250  # for a silent ring successor, before Redis takes its place
    redis_retry_ms: int = 100
    write_back_after_ms: int = 1_000  # without a write
    write_back_within_ms: int = 10_000  # of the first write that Redis has not, whatever follows
    recheck_copies_ms: int = 5_000
    write_backs_at_once: int = 128  # while draining: of lines, of entries; and copies in a report
    report_again_ms: int = 20  # the rest of the copies to be looked at
    max_bytes: int = 64 << 20
    max_dirty_bytes: int = 16 << 20  # in lines of this node; the same again for this home
    report_bytes: int = 1 << 20

    def write_back_at_ms(self, written_ms: int, dirty_since_ms: int) -> int:
        """Return when a value that was written last and first at these times is to be in Redis."""
        return min(
            written_ms + self.write_back_after_ms, dirty_since_ms + self.write_back_within_ms
        )

    def durability_of(self, key: str) -> Durability:
        """Return the mode of a key: that of the longest prefix, else the default."""
        best, length = self.durability, -1
        for prefix, mode in self.durability_by_prefix:
            if len(prefix) > length and key.startswith(prefix):
                best, length = mode, len(prefix)
        return best

    @property
    def granted_ms(self) -> int:
        """How long a copy lease counts at the home that granted it."""
        return self.copy_lease_ms + self.copy_lease_ms // 100 + self.drift_ms

    def remaining_at_holder_ms(self, remaining_ms: int) -> int:
        """Return how long a copy with so long to live may be served, from asking for it."""
        return remaining_ms - remaining_ms // 50 - self.drift_ms

    def serve_until_ms(self, sent_ms: int, remaining_ms: int) -> int:
        """Return until when a copy may be served that was asked for then; 0 = it never expires."""
        if not remaining_ms:
            return 0
        return max(1, sent_ms + self.remaining_at_holder_ms(remaining_ms))
