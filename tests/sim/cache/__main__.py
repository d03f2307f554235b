"""Run the cache's simulator: `python -m sim.cache --seeds 200`, or one seed again: `--seed 17`.

Run it from the `tests` directory (`make sim SEEDS=200` does).
"""

from __future__ import annotations

import sys

from sim.cache.profiles import PROFILES, profile_of
from sim.cache.world import run_seed
from sim.command import Job, Simulator
from sim.results import Result


def run_one(job: Job) -> Result:
    """Run one seed of a profile."""
    seed, name = job
    return run_seed(seed, profile_of(seed, name))


SIMULATOR = Simulator(module="sim.cache", profiles=PROFILES, run_one=run_one)

if __name__ == "__main__":
    sys.exit(SIMULATOR.main())
