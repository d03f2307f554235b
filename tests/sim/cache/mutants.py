"""Planted bugs of the cache: `python -m sim.cache.mutants`, from the `tests` directory.

As `sim.mutants`: a bug that survives `--seeds` of them makes the exit code 1.
"""

from __future__ import annotations

import sys

from sim.cache.__main__ import SIMULATOR
from sim.cache.planted import MUTANTS
from sim.mutants import Trial

TRIAL = Trial(
    module="sim.cache.mutants",
    mutants=MUTANTS,
    simulator=SIMULATOR,
)

if __name__ == "__main__":
    sys.exit(TRIAL.main())
