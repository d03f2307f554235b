"""Run the simulator: `python -m sim --seeds 200`, or one seed again: `python -m sim --seed 17`.

Run it from the `tests` directory (`make sim SEEDS=200` does).
"""

from __future__ import annotations

import sys

from sim.command import Job, Simulator
from sim.profiles import PROFILES, profile_of
from sim.results import Result
from sim.world import run_seed


def run_one(job: Job) -> Result:
    """Run one seed of a profile."""
    seed, name = job
    return run_seed(seed, profile_of(seed, name))


SIMULATOR = Simulator(module="sim", profiles=PROFILES, run_one=run_one)

if __name__ == "__main__":
    sys.exit(SIMULATOR.main())
