"""Protocol transcripts: a scenario as commands, and under each command what came of it.

A transcript is text for people. Lines that start with `>` are commands, lines indented by two
spaces are what the group did, everything else is comment. Positions are written index/term.

    group VOTERS [learners=IDS] [OPTION=NUMBER ...]   start with everyone up and idle
    disk auto|manual             write at once (the default), or only on `write`
    tick ID                      let ID alone reach its next deadline
    wait MS                      time passes for all; what is sent arrives
    round [COUNT]                deliver what is under way now, not what that brings about
    settle                       deliver everything, in order, until it is quiet
    deliver FROM->TO [COUNT]     deliver one (or COUNT) of the messages under way; * is anybody
    drop FROM->TO                lose all of them
    hold FROM->TO / release      put messages aside / bring them back under way
    write ID [COUNT]             the disk finishes what is queued
    propose ID TEXT...           one entry a word
    config ID add|promote|demote|remove TARGET [expected=INDEX]
    read ID / transfer ID [TARGET] / compact ID [INDEX]
    crash ID / restart ID / start ID          the last one: a new, empty machine
    pause ID / resume ID         stop the process; what arrives meanwhile waits in its sockets
    cut A B ... / heal           no messages between A and B ... (one id alone: from everybody)
    status / log ID / applied ID
    quiet COMMAND ...            run a command and do not print what comes of it
"""

from __future__ import annotations

import shlex
from collections.abc import Callable

from distsync_node.raft.types import (
    AppendRequest,
    AppendResponse,
    Apply,
    ConfigOperation,
    Configuration,
    ConfigurationChanged,
    Entry,
    EntryKind,
    MemberId,
    Persist,
    PreVoteRequest,
    PreVoteResponse,
    ProposalAccepted,
    ProposalDropped,
    RaftEffect,
    RaftMessage,
    RaftOptions,
    ReadDropped,
    ReadReady,
    Restore,
    RoleChanged,
    Send,
    SnapshotChunk,
    SnapshotResponse,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from unit.raft.cluster import Cluster, Flight

OPERATIONS = {
    "add": ConfigOperation.ADD_LEARNER,
    "promote": ConfigOperation.PROMOTE,
    "demote": ConfigOperation.DEMOTE,
    "remove": ConfigOperation.REMOVE,
}


# --- Printing -------------------------------------------------------------------------------


def show_entry(entry: Entry) -> str:
    match entry.kind:
        case EntryKind.COMMANDS:
            return f'{entry.index}/{entry.term} "{entry.payload.decode()}"'
        case kind:
            return f"{entry.index}/{entry.term} {kind.name.lower()}"


def show_entries(entries: tuple[Entry, ...] | list[Entry]) -> str:
    return "[" + ", ".join(show_entry(entry) for entry in entries) + "]"


def show_configuration(config: Configuration) -> str:
    text = f"voters {','.join(config.voters)}"
    if config.learners:
        text += f" learners {','.join(config.learners)}"
    if config.removed:
        text += f" removed {','.join(config.removed)}"
    return text


def show_message(message: RaftMessage) -> str:
    match message:
        case PreVoteRequest(term=term, last_index=index, last_term=last_term):
            return f"PreVote term={term} last={index}/{last_term}"
        case PreVoteResponse(term=term, granted=granted):
            return f"PreVoteAnswer term={term} {'granted' if granted else 'refused'}"
        case VoteRequest(term=term, last_index=index, last_term=last_term, transfer=transfer):
            return f"Vote term={term} last={index}/{last_term}{' transfer' if transfer else ''}"
        case VoteResponse(term=term, granted=granted):
            return f"VoteAnswer term={term} {'granted' if granted else 'refused'}"
        case AppendRequest():
            text = f"Append term={message.term} prev={message.prev_index}/{message.prev_term}"
            text += f" commit={message.commit} round={message.round}"
            return text + (f" {show_entries(message.entries)}" if message.entries else "")
        case AppendResponse(accepted=True):
            return (
                f"AppendAnswer term={message.term} match={message.match_index}"
                f" round={message.round}"
            )
        case AppendResponse():
            text = f"AppendAnswer term={message.term} refused"
            if message.refused_index:
                text += f" at {message.refused_index}"
                text += f" hint={message.conflict_index}/{message.conflict_term}"
            return text
        case SnapshotChunk():
            end = message.offset + len(message.data)
            return (
                f"Snapshot term={message.term} of {message.meta.index}/{message.meta.term}"
                f" bytes {message.offset}..{end} of {message.total}"
            )
        case SnapshotResponse(installed=True):
            return f"SnapshotAnswer term={message.term} of {message.index} installed"
        case SnapshotResponse():
            return f"SnapshotAnswer term={message.term} of {message.index}" + (
                f" next={message.next_offset}"
            )
        case TimeoutNow(term=term):
            return f"TimeoutNow term={term}"


def show_persist(persist: Persist) -> str:
    parts = []
    if persist.hard_state is not None:
        hard_state = persist.hard_state
        parts.append(
            f"term={hard_state.term} vote={hard_state.vote or '-'} commit={hard_state.commit}"
        )
    if persist.snapshot is not None:
        meta = persist.snapshot.meta
        parts.append(
            f"snapshot {meta.index}/{meta.term}"
            + (" instead of the log" if persist.discard_log else f" keep from {persist.keep_from}")
        )
    if persist.entries:
        parts.append(show_entries(persist.entries))
    if persist.then:
        parts.append(f"then {len(persist.then)} to send")
    return "; ".join(parts)


def show_effect(member_id: str, effect: RaftEffect) -> str:
    match effect:
        case Send(to=to, message=message):
            return f"{member_id}->{to} {show_message(message)}"
        case Persist():
            return f"{member_id} persists {show_persist(effect)}"
        case Apply(entries=entries):
            return f"{member_id} applies {show_entries(entries)}"
        case Restore(snapshot=state):
            return f"{member_id} restores {state.meta.index}/{state.meta.term}"
        case RoleChanged(role=role, term=term, leader=leader):
            name = role.name.lower().replace("_", "-")
            return f"{member_id} is {name} in term {term}, leader {leader or '-'}"
        case ConfigurationChanged(configuration=config):
            return f"{member_id} has {show_configuration(config)}"
        case ProposalAccepted(term=term, index=index):
            return f"{member_id} accepted proposal {index}/{term}"
        case ProposalDropped(reason=reason):
            return f"{member_id} dropped a proposal: {reason.name}"
        case ReadReady(ref=ref, index=index):
            return f"{member_id} read {ref} may be served at {index}"
        case ReadDropped(ref=ref, reason=reason):
            return f"{member_id} dropped read {ref}: {reason.name}"


# --- Commands -------------------------------------------------------------------------------


class Transcript:
    """Runs commands and collects what they print."""

    def __init__(self) -> None:
        self.cluster: Cluster | None = None
        self.lines: list[str] = []
        self.held: list[Flight] = []

    @property
    def group(self) -> Cluster:
        if self.cluster is None:
            raise ValueError("the first command must be `group`")
        return self.cluster

    def run(self, command: str) -> list[str]:
        """Run one command and return its output."""
        self.lines = []
        name, *words = shlex.split(command)
        handler: Callable[..., None] = getattr(self, f"do_{name}")
        handler(*words)
        return self.lines

    def watch(self, member_id: MemberId, effect: RaftEffect) -> None:
        self.lines.append(show_effect(member_id, effect))

    def do_group(self, voters: str, *words: str) -> None:
        pairs = dict(word.split("=") for word in words)
        learners = pairs.pop("learners", "")
        options = RaftOptions(**{key: int(value) for key, value in pairs.items()})
        self.cluster = Cluster(voters, learners, options=options)
        self.cluster.watchers.append(self.watch)

    def do_disk(self, mode: str) -> None:
        self.group.auto_disk = {"auto": True, "manual": False}[mode]
        if self.group.auto_disk:
            for member_id in self.group.machines:
                self.group.write(member_id)

    def do_tick(self, member_id: str) -> None:
        self.group.tick(member_id)

    def do_wait(self, duration_ms: str) -> None:
        self.group.wait(int(duration_ms))

    def do_settle(self) -> None:
        self.group.settle()

    def _matching(self, link: str) -> list[Flight]:
        sender, to = link.split("->")
        return [f for f in self.group.in_flight if sender in ("*", f.sender) and to in ("*", f.to)]

    def do_deliver(self, link: str, count: str = "1") -> None:
        for _ in range(int(count)):
            matching = self._matching(link)
            if not matching:
                self.lines.append("nothing is under way there")
                return
            flight = matching[0]
            self.group.in_flight.remove(flight)
            self.group.deliver(flight)

    def do_round(self, count: str = "1") -> None:
        for _ in range(int(count)):
            for flight in self.group.take():
                self.group.deliver(flight)

    def do_drop(self, link: str) -> None:
        for flight in self._matching(link):
            self.group.in_flight.remove(flight)
            lost = show_message(flight.message)
            self.lines.append(f"lost {flight.sender}->{flight.to} {lost}")

    def do_hold(self, link: str) -> None:
        for flight in self._matching(link):
            self.group.in_flight.remove(flight)
            self.held.append(flight)

    def do_release(self) -> None:
        self.group.in_flight, self.held = self.held + self.group.in_flight, []

    def do_write(self, member_id: str, count: str | None = None) -> None:
        self.group.write(member_id, None if count is None else int(count))

    def do_propose(self, member_id: str, *payloads: str) -> None:
        for payload in payloads:
            self.group.propose(member_id, payload)

    def do_config(self, member_id: str, operation: str, target: str, *words: str) -> None:
        expected = dict(word.split("=") for word in words).get("expected")
        self.group.propose_config(
            member_id, OPERATIONS[operation], target, None if expected is None else int(expected)
        )

    def do_read(self, member_id: str) -> None:
        self.group.read(member_id)

    def do_transfer(self, member_id: str, target: str | None = None) -> None:
        self.group.transfer(member_id, target)

    def do_compact(self, member_id: str, index: str | None = None) -> None:
        self.group.compact(member_id, None if index is None else int(index))

    def do_crash(self, member_id: str) -> None:
        self.group.crash(member_id)

    def do_restart(self, member_id: str) -> None:
        self.group.restart(member_id)

    def do_start(self, member_id: str) -> None:
        self.group.add_machine(member_id)

    def do_pause(self, member_id: str) -> None:
        self.group.pause(member_id)

    def do_resume(self, member_id: str) -> None:
        self.group.resume(member_id)

    def do_cut(self, member_id: str, *others: str) -> None:
        for other in others or self.group.machines:
            self.group.cut |= {(member_id, other), (other, member_id)}

    def do_heal(self) -> None:
        self.group.heal()

    def do_quiet(self, *command: str) -> None:
        getattr(self, f"do_{command[0]}")(*command[1:])
        self.lines.clear()

    def do_status(self) -> None:
        for member_id, machine in sorted(self.group.machines.items()):
            if machine.core is None:
                self.lines.append(f"{member_id} down")
                continue
            core = machine.up
            role = core.role.name.lower().replace("_", "-")
            self.lines.append(
                f"{member_id} {role} term={core.term} leader={core.leader or '-'}"
                f" commit={core.commit_index} durable={core.durable_index}"
                f" log={core.first_index}..{core.last_index}"
            )

    def do_log(self, member_id: str) -> None:
        log = self.group[member_id]._state.log
        self.lines.append(show_entries(log.slice(log.first_index, log.last_index)))

    def do_applied(self, member_id: str) -> None:
        self.lines.append(show_entries(self.group.machines[MemberId(member_id)].applied))


def replay(text: str) -> str:
    """Run a transcript's commands and return the transcript as it should read."""
    transcript = Transcript()
    result: list[str] = []
    for line in text.splitlines():
        if line.startswith("  "):
            continue  # what was printed last time
        result.append(line)
        if line.startswith(">"):
            result.extend(f"  {printed}" for printed in transcript.run(line[1:]))
    return "\n".join(result) + "\n"
