"""Who makes trouble: one fault after the other, each of which ends by itself.

A fault of the profile named `x` is the method `_x` of a subclass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from sim.kernel import US_PER_MS, Kernel
from sim.network import Network


class Profile(Protocol):
    """Weights of the faults, and how long to wait between two."""

    @property
    def faults(self) -> Mapping[str, int]: ...

    @property
    def fault_gap_ms(self) -> tuple[int, int]: ...


class World(Protocol):
    """What there is to make trouble in; `heals` counts how often all of it was mended at once."""

    kernel: Kernel
    network: Network
    heals: int

    @property
    def profile(self) -> Profile: ...


class Nemesis:
    """Chooses a fault by the weights of the profile, at irregular times."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._kernel = world.kernel
        self._rng = world.kernel.rng("nemesis")
        self._names = sorted(world.profile.faults)
        self._weights = [world.profile.faults[name] for name in self._names]
        self._over = False

    def start(self) -> None:
        """Begin."""
        self._kernel.after(self._gap_us(), self._act)

    def stop(self) -> None:
        """Begin nothing any more."""
        self._over = True

    def _gap_us(self) -> int:
        return self._rng.randint(*self._world.profile.fault_gap_ms) * US_PER_MS

    def _act(self) -> None:
        if self._over:
            return
        (name,) = self._rng.choices(self._names, self._weights)
        self._kernel.trace("fault", name)
        getattr(self, f"_{name}")()
        self._kernel.after(self._gap_us(), self._act)

    def _for_a_while(self, low_ms: int, high_ms: int) -> int:
        return self._rng.randint(low_ms, high_ms) * US_PER_MS

    def _mend_after(self, for_us: int, mend: Callable[[], None]) -> None:
        """Have a fault ended, unless all of them are healed before."""
        heals = self._world.heals

        def unless_healed() -> None:
            if self._world.heals == heals:
                mend()

        self._kernel.after(for_us, unless_healed)

    def _cut(self, links: list[tuple[str, str]], for_us: int) -> None:
        network = self._world.network
        for source, target in links:
            network.cut(source, target)

        def mend() -> None:
            for source, target in links:
                network.mend(source, target)

        self._mend_after(for_us, mend)
