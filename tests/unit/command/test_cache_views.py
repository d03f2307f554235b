from distsync.cache_models import CachedLine, CacheStats, LineCounts
from distsync.command.cache_views import lines_table, stats_page


def test_nodes_stand_beside_each_other_with_the_reasons_of_all_misses() -> None:
    one = CacheStats(
        lines=LineCounts(modified=1, exclusive=2, shared=3),
        bytes=500,
        max_bytes=1000,
        dirty_bytes=20,
        oldest_dirty_ms=1500,
        hits=9,
        misses={"cold": 2, "evicted": 1, "never": 0},
        durability="mirrored",
        settled=True,
    )
    other = CacheStats(lines=LineCounts(), misses={"evicted": 4}, durability="mirrored")
    page = stats_page([("n1", one), ("n2", other)])
    heading, first, second, reasons, unsettled, durability = page.split("\n")
    assert heading.split()[:8] == ["NAME", "M", "E", "S", "BYTES", "OF", "DIRTY", "OLDEST"]
    assert first.split()[:10] == ["n1", "1", "2", "3", "500", "1000", "20", "1.5s", "9", "3"]
    assert second.split()[:10] == ["n2", "0", "0", "0", "0", "0", "0", "-", "0", "4"]
    assert reasons == "misses: evicted 5, cold 2"
    assert unsettled == "not settled: n2: another crash now may lose values"
    assert durability == "durability: mirrored"


def test_lines_are_shown_with_their_node_and_cannot_draw_on_a_terminal() -> None:
    line = CachedLine(key="a\x1b[2J", state="M", version="1.2", bytes=7, dirty=True, ttl_ms=90_000)
    _, row = lines_table([("n1", line)]).split("\n")
    assert row.split() == ["n1", "a\\x1b[2J", "M", "1.2", "7", "yes", "1m30s", "-"]
