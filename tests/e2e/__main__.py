"""`make e2e`: journeys on a real cluster.

    KUBECONFIG=... E2E_NODE_IMAGE=... E2E_OPERATOR_IMAGE=... E2E_REDIS_IMAGE=... make e2e

uses that cluster; the images are on its nodes already and nothing is pulled. Without KUBECONFIG a
cluster is made by kind, with images built here. Exit codes: 0; 1 when a journey failed: logs,
events and resources are saved; 2 when there is no cluster to go to.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
import time
import traceback
from pathlib import Path

from e2e.journeys import JOURNEYS
from e2e.place import ROOT, NoPlace, find_place
from e2e.tools import JourneyFailed, save_evidence
from e2e.world import World


def main() -> int:
    """Go on all journeys, in order, until one fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="leave a kind cluster running")
    parser.add_argument("--evidence", type=Path, default=ROOT / "e2e-evidence")
    arguments = parser.parse_args()
    try:
        with (
            tempfile.TemporaryDirectory() as directory,
            find_place(Path(directory), keep=arguments.keep) as place,
        ):
            return travel(World(place, f"e2e-{secrets.token_hex(3)}"), arguments.evidence)
    except NoPlace as error:
        print(f"make: e2e has no cluster: {error}", file=sys.stderr)
        return 2


def travel(world: World, evidence: Path) -> int:
    """Go on the journeys; return the exit code."""
    for number, journey in enumerate(JOURNEYS, 1):
        began = time.monotonic()
        print(f"{number}. {(journey.__doc__ or '').splitlines()[0]}", flush=True)
        try:
            for line in journey(world):
                print(f"   {time.monotonic() - began:6.1f} s  {line}", flush=True)
        except Exception as error:  # whatever it is, what the cluster shows is worth saving
            print(f"   {time.monotonic() - began:6.1f} s  FAILED: {error!r}", flush=True)
            if not isinstance(error, JourneyFailed):
                traceback.print_exc()
            save_evidence(world.kubectl, world.namespaces, evidence / journey.__name__)
            print(f"   logs, events and resources are in {evidence / journey.__name__}")
            return 1
    print(f"{len(JOURNEYS)} passed, 0 failed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
