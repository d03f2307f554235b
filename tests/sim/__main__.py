"""Run the simulator: `python -m sim --seeds 200`, or one seed again: `python -m sim --seed 17`.

Run it from the `tests` directory (`make sim SEEDS=200` does). A failure prints the check that
failed, the line that repeats it, and the end of its trace; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor

from sim.profiles import PROFILES, profile_of
from sim.world import Result, run_seed

TRACE_LINES_SHOWN = 60


def run_one(job: tuple[int, str | None]) -> Result:
    """Run one seed of a profile (the seed's own when None)."""
    seed, name = job
    return run_seed(seed, profile_of(seed, name))


def results_of(jobs: Iterable[tuple[int, str | None]], processes: int) -> Iterator[Result]:
    """Run jobs, in order, on so many processes."""
    if processes <= 1:
        yield from map(run_one, jobs)
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(run_one, jobs, chunksize=2)


def describe_failure(result: Result, lines: int = TRACE_LINES_SHOWN) -> str:
    """Return what failed, how to repeat it, and the end of the trace."""
    failure = result.failure
    if failure is None:
        return f"seed {result.seed} passed"
    return "\n".join(
        [
            *(result.trace[-lines:] if lines else ()),
            f"seed {result.seed} ({result.profile}) failed: {failure.check}",
            f"  {failure.detail}",
            f"  replay: python -m sim --seed {result.seed} --profile {result.profile}",
        ]
    )


def missing_faults(faults: dict[str, Counter[str]]) -> list[str]:
    """Return the kinds of trouble that a profile promises and that never happened."""
    return [
        f"{name}: {kind}"
        for name, counter in sorted(faults.items())
        for kind in PROFILES[name].must_happen
        if not counter[kind]
    ]


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="run this many seeds")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="run this seed only, and print its trace hash")
    parser.add_argument("--profile", choices=sorted(PROFILES), help="instead of the seed's own")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--lines", type=int, default=TRACE_LINES_SHOWN, help="of trace to print")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        seeds: Iterable[int] = [options.seed]
        options.processes = 1
    else:
        seeds = range(options.first, options.first + options.seeds)
    started = time.monotonic()
    failed = runs = 0
    faults: dict[str, Counter[str]] = {}
    totals: Counter[str] = Counter()
    for result in results_of(((seed, options.profile) for seed in seeds), options.processes):
        runs += 1
        faults.setdefault(result.profile, Counter()).update(result.faults)
        totals.update(steps=result.steps, operations=result.operations, entries=result.entries)
        if result.failure is not None:
            failed += 1
            print(describe_failure(result, options.lines), flush=True)
        elif options.seed is not None:
            print(f"seed {result.seed} ({result.profile}) passed, trace {result.trace_hash}")
            print(f"  {result.virtual_s:.1f} virtual s, {dict(sorted(result.faults.items()))}")
    elapsed_s = time.monotonic() - started
    print(
        f"{runs} runs in {elapsed_s:.0f} s, {failed} failed; {totals['steps']} steps, "
        f"{totals['entries']} entries, {totals['operations']} client operations"
    )
    if options.seed is None:
        for name, counter in sorted(faults.items()):
            print(f"  {name}: " + ", ".join(f"{k} {v}" for k, v in sorted(counter.items())))
        never = missing_faults(faults) if runs >= 50 else []
        for line in never:
            print(f"never happened - {line}")
        failed += len(never)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
