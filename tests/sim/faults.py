"""Who makes trouble: one fault after the other, each of which ends by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distsync_node.replica.types import Drain
from sim.host import Host
from sim.nemesis import Nemesis
from sim.network import USUAL_DELAY_US

if TYPE_CHECKING:
    from sim.world import World


class Trouble(Nemesis):
    """Trouble for nodes, their disks, their network and who is a member."""

    _world: World

    def start(self) -> None:
        """Begin."""
        super().start()
        if self._world.forming and self._rng.random() < 0.5:
            self._wipe_founder()

    def _any_host(self) -> Host:
        """Choose a host, the leader more often than another."""
        leader = self._world.leader()
        if leader is not None and self._rng.random() < 0.35:
            return leader
        return self._rng.choice(list(self._world.hosts.values()))

    def _others(self, host: Host) -> list[str]:
        return [name for name in self._world.hosts if name != host.name]

    # --- Network ------------------------------------------------------------------------------

    def _partition(self) -> None:
        inside, outside = self._in_two(list(self._world.hosts))
        for client in self._world.clients:
            (inside if self._rng.random() < 0.3 else outside).append(client.name)
        self._kernel.faults["partition"] += 1
        self._part(inside, outside, self._for_a_while(200, 2_000))

    def _isolate_leader(self) -> None:
        leader = self._world.leader()
        if leader is None:
            return
        self._kernel.faults["leader_isolated"] += 1
        self._part([leader.name], self._others(leader), self._for_a_while(300, 2_500))

    def _one_way_cut(self) -> None:
        host = self._any_host()
        self._cut_one_way(host.name, self._others(host), 2_000)

    def _cut_client(self) -> None:
        client = self._rng.choice(self._world.clients)
        host = self._any_host()
        self._kernel.faults["client_cut"] += 1
        self._part([client.name], [host.name], self._for_a_while(200, 2_000))

    def _lossy(self) -> None:
        self._garble(duplications=(0.0, 0.05, 0.2), reorderings=(0.0, 0.05, 0.3))

    def _slow_network(self) -> None:
        self._slow_down(USUAL_DELAY_US)

    # --- Processes ----------------------------------------------------------------------------

    def _crash(self) -> None:
        self._crash_host(self._any_host())

    def _crash_host(self, host: Host) -> None:
        if host.alive:
            self._kernel.faults["crash"] += 1
            self._world.crash(host)
            self._kernel.after(self._for_a_while(20, 1_800), self._world.restart, host)

    def _crash_writing(self) -> None:
        """Crash a host at the next moment at which its disk is in the middle of a write."""
        self._watch_disk(self._any_host(), 200, snapshots=False)

    def _crash_snapshot(self) -> None:
        """Crash a host between a snapshot and the log record that goes with it."""
        self._watch_disk(self._any_host(), 4_000, snapshots=True)

    def _watch_disk(self, host: Host, tries: int, snapshots: bool) -> None:
        disk = host.disk
        if host.alive and (disk.writes_snapshot if snapshots else disk.busy):
            self._kernel.faults["crash_snapshot" if snapshots else "crash_writing"] += 1
            self._crash_host(host)
        elif tries and not self._over:
            delay_us = self._rng.randint(50, 900)
            self._kernel.after(delay_us, self._watch_disk, host, tries - 1, snapshots)

    def _crash_all(self) -> None:
        self._kernel.faults["crash_all"] += 1
        for host in list(self._world.hosts.values()):
            self._crash_host(host)

    def _pause(self) -> None:
        host = self._any_host()
        if not host.alive or host.paused:
            return
        self._kernel.faults["pause"] += 1
        host.pause()
        self._kernel.after(
            self._for_a_while(*self._world.profile.pause_ms), self._resume, host, host.incarnation
        )

    def _resume(self, host: Host, incarnation: int) -> None:
        if host.incarnation == incarnation:
            host.resume()

    def _drain(self) -> None:
        """A process leaves the ring by itself, goes on as a member, and is restarted some time."""
        host = self._any_host()
        if not host.alive:
            return
        self._kernel.faults["drain"] += 1
        host.tell(lambda now_ms: Drain(now_ms=now_ms))
        length_us = self._for_a_while(200, 3_000)
        self._kernel.after(length_us, self._crash_same, host, host.incarnation)

    def _crash_same(self, host: Host, incarnation: int) -> None:
        if host.incarnation == incarnation:
            self._crash_host(host)

    # --- Disks --------------------------------------------------------------------------------

    def _slow_disk(self) -> None:
        host, disk = self._any_host(), None
        disk = host.disk
        disk.sync_us = self._rng.choice(((10_000, 60_000), (50_000, 400_000)))
        self._kernel.faults["slow_disk"] += 1
        self._kernel.after(self._for_a_while(500, 3_000), setattr, disk, "sync_us", (100, 900))

    def _stall_leader(self) -> None:
        """Cut the leader off with a disk so slow that its last entries are still on their way to it
        when another leader's replace them."""
        leader = self._world.leader()
        if leader is None:
            return
        self._kernel.faults["leader_stalled"] += 1
        disk, cut_us = leader.disk, self._for_a_while(500, 1_500)
        disk.sync_us = (200_000, 900_000)
        self._part([leader.name], self._others(leader), cut_us)
        self._kernel.after(cut_us + 900_000, setattr, disk, "sync_us", (100, 900))

    def _full_disk(self) -> None:
        disk = self._any_host().disk
        disk.full = True
        self._kernel.faults["full_disk"] += 1
        self._kernel.after(self._for_a_while(300, 2_500), setattr, disk, "full", False)

    def _wipe(self) -> None:
        host = self._any_host()
        if self._world.may_lose_disk(host):
            self._kernel.faults["wipe"] += 1
            self._world.wipe(host)
            self._kernel.after(self._for_a_while(20, 1_800), self._world.restart, host)

    def _wipe_founder(self) -> None:
        """Lose the disk of the first host that belongs to a cluster, before others know of it."""
        self._hunt_founder(600)

    def _hunt_founder(self, tries: int) -> None:
        begun = [
            host
            for host in self._world.hosts.values()
            if host.state in ("joining", "member") and not self._world.raft.configuration.members
        ]
        if len(begun) == 1 and self._world.may_lose_disk(begun[0]):
            self._kernel.faults["wipe_founder"] += 1
            self._world.wipe(begun[0])
            self._kernel.after(self._for_a_while(1, 60), self._world.restart, begun[0])
        elif tries and not self._over:
            self._kernel.after(self._rng.randint(100, 4_000), self._hunt_founder, tries - 1)

    # --- Membership ---------------------------------------------------------------------------

    def _membership(self) -> None:
        operator = self._world.operator
        if operator.idle:
            operator.start(operator.act())

    def _transfer(self) -> None:
        operator = self._world.operator
        if operator.idle:
            operator.start(operator.transfer())
