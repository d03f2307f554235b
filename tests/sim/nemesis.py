"""Who makes trouble: one fault after the other, each of which ends by itself.

A fault of the profile named `x` is the method `_x` of a subclass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    """What there is to make trouble in; `heals` counts how often all of it was mended at once, and
    `background` is what the network always does: its loss, duplication and reordering."""

    kernel: Kernel
    network: Network
    background: tuple[float, float, float]
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

    # --- Network ------------------------------------------------------------------------------

    def _in_two(self, names: list[str]) -> tuple[list[str], list[str]]:
        """Deal names out: one or more, but at most half of several, and the rest."""
        self._rng.shuffle(names)
        size = self._rng.randint(1, max(1, len(names) // 2))
        return names[:size], names[size:]

    def _part(self, some: Sequence[str], others: Sequence[str], for_us: int) -> None:
        """Let nothing pass between some and the others, in either direction."""
        links = [(one, other) for one in some for other in others]
        self._cut(links + [(b, a) for a, b in links], for_us)

    def _cut_one_way(self, one: str, others: list[str], longest_ms: int) -> None:
        """Let nothing pass from one to a few of the others, or from these to it."""
        chosen = self._rng.sample(others, self._rng.randint(1, len(others))) if others else []
        self._kernel.faults["one_way_cut"] += 1
        links = [(one, other) for other in chosen]
        if self._rng.random() < 0.5:
            links = [(b, a) for a, b in links]
        self._cut(links, self._for_a_while(200, longest_ms))

    def _cut(self, links: list[tuple[str, str]], for_us: int) -> None:
        network = self._world.network
        for source, target in links:
            network.cut(source, target)

        def mend() -> None:
            for source, target in links:
                network.mend(source, target)

        self._mend_after(for_us, mend)

    def _garble(self, duplications: Sequence[float], reorderings: Sequence[float]) -> None:
        """Have messages lost, repeated and reordered, more than they always are."""
        network = self._world.network
        network.loss = self._rng.choice((0.02, 0.1, 0.3))
        network.duplication = self._rng.choice(duplications)
        network.reordering = self._rng.choice(reorderings)

        def mend() -> None:
            network.loss, network.duplication, network.reordering = self._world.background

        self._mend_after(self._for_a_while(500, 3_000), mend)

    def _slow_down(self, usual_us: tuple[int, int]) -> None:
        """Have messages take longer than they usually do."""
        network = self._world.network
        network.delay_us = self._rng.choice(((5_000, 40_000), (20_000, 250_000)))
        self._kernel.faults["slow_network"] += 1

        def mend() -> None:
            network.delay_us = usual_us

        self._mend_after(self._for_a_while(300, 2_000), mend)
