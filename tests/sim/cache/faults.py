"""Who makes trouble for the cache: one fault after the other, each of which ends by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.cache.host import Host
from sim.nemesis import Nemesis

if TYPE_CHECKING:
    from sim.cache.world import World


class Trouble(Nemesis):
    """Trouble for nodes, their network, the ring and Redis."""

    _world: World

    def _any_host(self) -> Host:
        return self._rng.choice(list(self._world.hosts.values()))

    def _others(self, host: Host) -> list[str]:
        return [name for name in [*self._world.hosts, "leader"] if name != host.name]

    # --- Network ------------------------------------------------------------------------------

    def _partition(self) -> None:
        inside, outside = self._in_two(list(self._world.hosts))
        self._kernel.faults["partition"] += 1
        self._part(inside, [*outside, "leader"], self._for_a_while(200, 4_500))

    def _one_way_cut(self) -> None:
        host = self._any_host()
        self._cut_one_way(host.name, self._others(host), 4_500)

    def _cut_pair(self) -> None:
        """Only the link between two nodes; both keep their node leases."""
        one, other = self._rng.sample(list(self._world.hosts), 2)
        links = [(one, other), (other, one)]
        self._kernel.faults["pair_cut"] += 1
        self._cut(links[: self._rng.randint(1, 2)], self._for_a_while(200, 4_500))

    def _lossy(self) -> None:
        self._garble(duplications=(0.0, 0.1, 0.3), reorderings=(0.0, 0.1, 0.4))

    def _slow_network(self) -> None:
        self._slow_down(self._world.profile.delay_us)

    # --- Processes ----------------------------------------------------------------------------

    def _crash(self) -> None:
        host = self._any_host()
        if not host.alive:
            return
        if self._world.profile.one_at_a_time and not self._world.is_settled():
            self._kernel.faults["not_settled"] += 1  # it dies only when the rest say that it may
            return
        self._kernel.faults["crash"] += 1
        host.crash()
        self._kernel.after(self._for_a_while(10, 4_000), self._start, host)

    def _crash_two(self) -> None:
        """Two at once, for good or for long: what only they had is lost."""
        hosts = [host for host in self._world.hosts.values() if host.alive]
        for host in self._rng.sample(hosts, min(2, len(hosts) - 1)):
            self._kernel.faults["crash"] += 1
            host.crash()
            self._kernel.after(self._for_a_while(3_000, 6_000), self._start, host)

    def _start(self, host: Host) -> None:
        if not host.alive:
            if self._rng.random() < 0.3:
                offset_ms = self._rng.randint(0, 100_000)
                host.clock = host.clock.rebooted(offset_ms, self._kernel.now_us)
            host.start()

    def _pause(self) -> None:
        host = self._any_host()
        if not host.alive or host.paused:
            return
        self._kernel.faults["pause"] += 1
        self._world.lost_with(host)
        host.pause()
        length_us = self._for_a_while(*self._world.profile.pause_ms)
        self._kernel.after(length_us, self._resume, host, host.incarnation)

    def _resume(self, host: Host, incarnation: int) -> None:
        if host.incarnation == incarnation and host.paused:
            host.resume(news_lost=self._rng.random() < 0.3)

    def _leader_change(self) -> None:
        self._kernel.faults["leader_change"] += 1
        self._world.new_leader()

    # --- Ring ---------------------------------------------------------------------------------

    def _drain(self) -> None:
        host = self._any_host()
        if host.alive and not host.draining and not host.paused:
            self._kernel.faults["drain"] += 1
            host.drain()
            self._kernel.after(self._for_a_while(300, 4_000), self._replace, host, host.incarnation)

    def _replace(self, host: Host, incarnation: int) -> None:
        """A drained node's process ends, whether it is done or not; another takes its place."""
        if host.incarnation != incarnation or not host.alive:
            return
        if not host.is_leaving and not host.paused and self._rng.random() < 0.5:
            self._kernel.faults["stopped_undrained"] += 1
            host.stop()
            self._kernel.after(self._for_a_while(1, 500), self._replace, host, incarnation)
            return
        host.crash()
        self._kernel.after(self._for_a_while(1, 500), self._start, host)

    def _roll(self) -> None:
        """A node leaves, as it is told to, and another process takes its place when it is out."""
        host = self._any_host()
        if host.alive and not host.draining:
            self._kernel.faults["roll"] += 1
            host.drain()
            self._when_out(host, host.incarnation)

    def _when_out(self, host: Host, incarnation: int) -> None:
        if host.incarnation != incarnation or not host.alive:
            return
        if host.server in self._world.leader.ring.servers:
            self._kernel.after(self._for_a_while(1, 50), self._when_out, host, incarnation)
            return
        lingers_us = self._for_a_while(150, 300)
        self._kernel.after(lingers_us, self._end_process, host, incarnation)

    def _end_process(self, host: Host, incarnation: int) -> None:
        if host.incarnation == incarnation and host.alive:
            host.crash()
            self._kernel.after(self._for_a_while(1, 500), self._start, host)

    def _remove(self) -> None:
        host = self._any_host()
        self._kernel.faults["remove"] += 1
        if self._rng.random() < 0.7:
            # It does not hear of it, and goes on under the lease it has.
            self._part([host.name], self._others(host), self._for_a_while(1_000, 3_000))
        self._world.leader.remove(host.server.member)

    def _join(self) -> None:
        """A node that is in the ring leaves it by losing its lease, and comes back."""
        host = self._any_host()
        if not host.alive or not host.joined:
            return
        self._kernel.faults["join"] += 1
        host.joined = False
        self._kernel.after(self._for_a_while(1_000, 4_000), setattr, host, "joined", True)

    # --- Redis --------------------------------------------------------------------------------

    def _redis(self, **changes: object) -> None:
        redis = self._world.redis
        before = {"down": False, "full": False, "delay_us": (100, 900), "flaky": 0.0}
        for name, value in changes.items():
            setattr(redis, name, value)

        def mend() -> None:
            for name in changes:
                setattr(redis, name, before[name])

        self._mend_after(self._for_a_while(200, 2_500), mend)

    def _redis_down(self) -> None:
        self._redis(down=True)

    def _redis_full(self) -> None:
        self._redis(full=True)

    def _redis_slow(self) -> None:
        self._kernel.faults["redis_slow"] += 1
        self._redis(delay_us=self._rng.choice(((5_000, 50_000), (100_000, 900_000))))

    def _redis_flaky(self) -> None:
        self._redis(flaky=self._rng.choice((0.1, 0.4)))
