"""The command of a simulator: many seeds on all processors, or one of them again.

A failure prints the check that failed, the line that repeats it, and the end of its trace; the exit
code is then 1. So it is when a kind of trouble that a profile promises never happened.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from sim.results import Result

TRACE_LINES_SHOWN = 60
ENOUGH_RUNS = 50  # for every kind of trouble to have happened
MOST_UNJUDGED = 0.05  # histories a run

Job = tuple[int, str | None]  # a seed and its profile; the seed's own when None


class Profile(Protocol):
    """What kinds of trouble a run is made of."""

    @property
    def must_happen(self) -> tuple[str, ...]:
        """What has to have happened at least once in many runs."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulator:
    """A simulator; `module` is who runs it, `run_one` a function of a module, for processes."""

    module: str
    profiles: Mapping[str, Profile]
    run_one: Callable[[Job], Result]

    def describe_failure(self, result: Result, lines: int = TRACE_LINES_SHOWN) -> str:
        """Return what failed, how to repeat it, and the end of the trace."""
        failure = result.failure
        if failure is None:
            return f"seed {result.seed} passed"
        return "\n".join(
            [
                *(result.trace[-lines:] if lines else ()),
                f"seed {result.seed} ({result.profile}) failed: {failure.check}",
                f"  {failure.detail}",
                f"  replay: python -m {self.module}"
                f" --seed {result.seed} --profile {result.profile}",
            ]
        )

    def main(self, arguments: list[str] | None = None) -> int:
        """Run the command."""
        options = self._options(arguments)
        started = time.monotonic()
        runs: Counter[str] = Counter()
        amounts: Counter[str] = Counter()
        faults: dict[str, Counter[str]] = {}
        outcomes: dict[str, Counter[str]] = {}
        for result in self._results(options):
            faults.setdefault(result.profile, Counter()).update(result.faults)
            outcomes.setdefault(result.profile, Counter()).update(result.outcomes)
            runs.update(all=1, failed=result.failure is not None)
            amounts.update(steps=result.steps, entries=result.entries, operations=result.operations)
            if result.failure is not None:
                print(self.describe_failure(result, options.lines), flush=True)
            elif options.seed is not None:
                print(f"seed {result.seed} ({result.profile}) passed, trace {result.trace_hash}")
                print(f"  {result.virtual_s:.1f} virtual s")
        print(
            f"{runs['all']} runs in {time.monotonic() - started:.0f} s, {runs['failed']} failed; "
            + _listed(+amounts)
        )
        for name in sorted(faults):
            print(f"  {name}: {_listed(faults[name])}")
            if outcomes[name]:
                print(f"  {name} answers: {_listed(outcomes[name])}")
        missing = self._missing(faults) if runs["all"] >= ENOUGH_RUNS else []
        for line in missing:
            print(f"never happened - {line}")
        unjudged = sum(counter["unjudged"] for counter in faults.values())
        too_many = unjudged > runs["all"] * MOST_UNJUDGED
        if too_many:
            print(f"{unjudged} histories were too hard to judge")
        return 1 if runs["failed"] or missing or too_many else 0

    def _options(self, arguments: list[str] | None) -> argparse.Namespace:
        parser = argparse.ArgumentParser(prog=f"python -m {self.module}", description=__doc__)
        parser.add_argument("--seeds", type=int, default=200, help="run this many seeds")
        parser.add_argument("--first", type=int, default=0, help="the first of them")
        parser.add_argument("--seed", type=int, help="run this seed only, and print its trace hash")
        profiles = sorted(self.profiles)
        parser.add_argument("--profile", choices=profiles, help="instead of the seed's own")
        parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
        parser.add_argument(
            "--lines", type=int, default=TRACE_LINES_SHOWN, help="of trace to print"
        )
        return parser.parse_args(arguments)

    def _results(self, options: argparse.Namespace) -> Iterator[Result]:
        """Run what was asked for, in order."""
        seeds: Iterable[int] = (
            range(options.first, options.first + options.seeds)
            if options.seed is None
            else [options.seed]
        )
        jobs = ((seed, options.profile) for seed in seeds)
        if options.processes <= 1 or options.seed is not None:
            yield from map(self.run_one, jobs)
            return
        with ProcessPoolExecutor(options.processes) as pool:
            yield from pool.map(self.run_one, jobs, chunksize=2)

    def _missing(self, faults: Mapping[str, Counter[str]]) -> list[str]:
        """Return the kinds of trouble that a profile promises and that never happened."""
        return [
            f"{name}: {kind}"
            for name, counter in sorted(faults.items())
            for kind in self.profiles[name].must_happen
            if not counter[kind]
        ]


def _listed(counter: Counter[str]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in sorted(counter.items()))
