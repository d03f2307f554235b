"""Planted bugs: each is a real mistake that somebody could make, and the simulator must catch it.

`python -m sim.mutants` (from the `tests` directory; `make mutants`) plants each one in a process of
its own and runs seeds until a check fails. It prints which check that was and at which seed; a bug
that survives `--seeds` of them (1,000 unless told) makes the exit code 1. With `--only NAME` one
bug is tried, with the trace of its failure.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from sim import planted_locks, planted_raft
from sim.__main__ import SIMULATOR
from sim.command import Simulator
from sim.planting import MUTANTS, Mutant

CATALOGUE = (planted_raft, planted_locks)  # importing them fills MUTANTS
SHOWN_LINES = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A catalogue and the simulator that is to catch what is in it; `module` is who runs this."""

    module: str
    mutants: Mapping[str, Mutant]
    simulator: Simulator
    most_seeds: int = 1_000

    def try_one(self, name: str, first: int, seeds: int, lines: int) -> int:
        """Plant a bug in this process and run seeds until one fails; 0 when one did."""
        chosen = self.mutants[name]
        chosen.plant()
        for seed in range(first, first + seeds):
            result = self.simulator.run_one((seed, chosen.profile))
            if result.failure is not None:
                if lines:
                    print(self.simulator.describe_failure(result, lines))
                tried = seed - first + 1
                print(f"{name}: caught by {result.failure.check} at seed {seed} ({tried} tried)")
                return 0
        print(f"{name}: NOT CAUGHT in {seeds} seeds")
        return 1

    def _in_process(self, name: str, seeds: int) -> int:
        arguments = ["-m", self.module, "--only", name, "--seeds", str(seeds), "--lines=0"]
        process = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, check=False
        )
        print(process.stdout.strip() or f"{name}: broke\n{process.stderr[-2_000:]}", flush=True)
        return process.returncode

    def main(self, arguments: list[str] | None = None) -> int:
        """Run the command."""
        parser = argparse.ArgumentParser(prog=self.module)
        parser.add_argument("--only", choices=sorted(self.mutants))
        parser.add_argument("--first", type=int, default=0)
        parser.add_argument("--seeds", type=int, default=self.most_seeds)
        parser.add_argument("--lines", type=int, default=SHOWN_LINES)
        parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
        options = parser.parse_args(arguments)
        if options.only is not None:
            return self.try_one(options.only, options.first, options.seeds, options.lines)
        with ThreadPoolExecutor(options.processes) as pool:
            codes = list(pool.map(lambda name: self._in_process(name, options.seeds), self.mutants))
        print(f"{codes.count(0)} of {len(codes)} planted bugs caught")
        return 0 if not any(codes) else 1


TRIAL = Trial(module="sim.mutants", mutants=MUTANTS, simulator=SIMULATOR)

if __name__ == "__main__":
    sys.exit(TRIAL.main())
