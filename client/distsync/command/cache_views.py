"""How the cache of nodes is shown: tables for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from distsync.cache_models import CachedLine, CacheStats
from distsync.command.durations import format_duration
from distsync.command.output import printable, render_table


def stats_page(told: Sequence[tuple[str, CacheStats]]) -> str:
    """Show nodes beside each other, and of all together why reads were no hits."""
    headings = (
        *("NAME", "M", "E", "S", "BYTES", "OF", "DIRTY", "OLDEST", "HITS", "MISSES"),
        *("SNOOPS", "INVALIDATIONS", "WRITE-BACKS", "EVICTIONS"),
    )
    rows = [
        (
            *(name, stats.lines.modified, stats.lines.exclusive, stats.lines.shared),
            *(stats.bytes, stats.max_bytes, stats.dirty_bytes),
            format_duration(stats.oldest_dirty_ms) if stats.dirty_bytes else None,
            *(stats.hits, sum(stats.misses.values()), stats.snoops),
            *(stats.invalidations, stats.write_backs, stats.evictions),
        )
        for name, stats in told
    ]
    reasons: Counter[str] = Counter()
    for _, stats in told:
        reasons.update(stats.misses)
    shown = [f"{printable(reason)} {count}" for reason, count in reasons.most_common() if count]
    unsettled = [printable(name) for name, stats in told if not stats.settled]
    durability = sorted({stats.durability for _, stats in told if stats.durability})
    return "\n".join(
        [
            render_table(headings, rows),
            *([f"misses: {', '.join(shown)}"] if shown else []),
            *(
                [f"not settled: {', '.join(unsettled)}: another crash now may lose values"]
                if unsettled
                else []
            ),
            *([f"durability: {printable(', '.join(durability))}"] if durability else []),
        ]
    )


def lines_table(lines: Sequence[tuple[str, CachedLine]]) -> str:
    """Show lines, each with the node that holds it."""
    headings = ("NAME", "KEY", "STATE", "VERSION", "BYTES", "DIRTY", "TTL", "HOME")
    rows = [
        (
            *(name, line.key, line.state, line.version, line.bytes, line.dirty),
            None if line.ttl_ms is None else format_duration(line.ttl_ms),
            line.home,
        )
        for name, line in lines
    ]
    return render_table(headings, rows)
