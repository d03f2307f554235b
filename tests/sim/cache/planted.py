"""Bugs in the cache: each is a real mistake that somebody could make and that breaks a promise."""

from __future__ import annotations

from typing import Any

from distsync_node.cache import judging, node
from distsync_node.cache.context import Context
from distsync_node.cache.copy_leases import HeldLease
from distsync_node.cache.events import Loaded, RedisFailed
from distsync_node.cache.handover import Handover
from distsync_node.cache.home import home, requests, transactions
from distsync_node.cache.home.commits import Commits
from distsync_node.cache.home.directory import Directory
from distsync_node.cache.home.endings import Endings
from distsync_node.cache.home.entry import Entry
from distsync_node.cache.home.home import Home
from distsync_node.cache.home.outgoing import Outgoing
from distsync_node.cache.home.requests import Requests
from distsync_node.cache.home.transactions import Transactions
from distsync_node.cache.judging import Survivor
from distsync_node.cache.kept import KeptCopies
from distsync_node.cache.lines.held import HeldLines
from distsync_node.cache.lines.leases import Leases
from distsync_node.cache.lines.lines import Lines
from distsync_node.cache.lines.replies import Replies
from distsync_node.cache.lines.write_backs import WriteBacks
from distsync_node.cache.lines.writes import Writes
from distsync_node.cache.lines.yields import Yields
from distsync_node.cache.messages import AskRead, GivenUp, Granted, RingNews, RingWanted
from distsync_node.cache.node import CacheNode
from distsync_node.cache.tables import COMMITTING, LINE, TXN, Input, LineState, TxnKind, TxnState
from distsync_node.cache.types import ABSENT, Durability, Written, received
from distsync_node.cluster.leases import LeaseHolder
from sim.cache.host import Host
from sim.cache.redis import Key, Redis
from sim.planting import catalogue, put

MUTANTS, mutant = catalogue()


# --- Invalidation -----------------------------------------------------------------------------


def _forget(self: Outgoing, entry: Entry, holder: Any) -> None:
    entry.forget(holder)
    lease = self._leases.by_holder.get(holder)
    if lease is not None:
        lease.keys.discard(entry.key)


@mutant("a write does not wait until the others have given up their copies")
def no_ack_awaited() -> None:
    ask = Outgoing.ask_to_yield

    def hurried(self: Outgoing, entry: Entry, txn: Any, holders: set[Any]) -> None:
        ask(self, entry, txn, holders)
        if txn.kind is TxnKind.WRITE:
            for holder in list(holders):
                _forget(self, entry, holder)
            txn.waiting = set()
            self._timers.set(("txn", entry.key), self._context.now_ms)

    put(Outgoing, "ask_to_yield", hurried)


@mutant("an invalidation goes to the owner only, not to the sharers")
def sharers_not_invalidated() -> None:
    ask = Transactions._write

    def write(self: Transactions, entry: Entry, txn: Any) -> Any:
        if txn.state is None or not txn.waiting:
            for sharer in [one for one in entry.sharers if one != txn.source]:
                self._directory.forget(entry, sharer)
        return ask(self, entry, txn)

    put(Transactions, "_write", write)


@mutant("a fill that an invalidation has overtaken is installed")
def fill_installed_after_invalidate() -> None:
    LINE[LineState.FILLING][Input.INVALIDATE_OVERTAKES] = LineState.FILLING
    LINE[LineState.FILLING][Input.SNOOP_OVERTAKES] = LineState.FILLING


@mutant("a snoop or an invalidation that overtakes the commit is answered and forgotten")
def overtaking_ignored() -> None:
    overtaken = Yields._overtaken

    def forgetful(self: Yields, one: Any, ask: Any, message: Any) -> Any:
        return None if one.state in COMMITTING else overtaken(self, one, ask, message)

    put(Yields, "_overtaken", forgetful)


@mutant("a read is served while a write of the line is pending at its home")
def read_during_commit() -> None:
    ask = Home.ask

    def hasty(self: Home, source: Any, message: Any) -> None:
        entry = self.directory.entries.get(message.key)
        lease = self.directory.leases.find(source, message.lease)
        pending = entry is not None and entry.txn is not None and entry.txn.version is not None
        if (
            pending
            and isinstance(message.wish, AskRead)
            and lease is not None
            and message.number >= lease.floor
            and message.number not in lease.answers
            and entry.has_value
            and not entry.grant_of(source)
        ):
            lease.answers[message.number] = None
            self.transactions._grant(entry, self._txn_of(source, message), exclusive=False)
        else:
            ask(self, source, message)

    put(Home, "ask", hasty)


@mutant("a grant is honoured although nobody waits for it any more")
def late_grant_honoured() -> None:
    reply = Replies.reply

    def gullible(self: Replies, source: Any, message: Any) -> Any:
        held, granted = self._held, message.result
        known = held.lru.get(message.key)
        if (
            message.number not in self._asks._keys
            and isinstance(granted, Granted)
            and (known is None or (known.record is None and known.ask is None))
            and held.has_lease(source)
        ):
            fresh = held.line(message.key)
            fresh.state = LineState.EXCLUSIVE if granted.exclusive else LineState.SHARED
            fresh.record = received(granted.copy, self._context.now_ms)
            fresh.grant = message.number
            held.lru.resize(message.key, fresh.size)
        return reply(self, source, message)

    put(Replies, "reply", gullible)


@mutant("an Ask that was given up takes the place of the one after it", "impatient")
def given_up_ask_served() -> None:
    def is_wanted(self: Transactions, _entry: Entry, txn: Any) -> bool:
        lease = self._directory.leases.find(txn.source, txn.lease)
        return lease is not None and txn.number >= lease.floor

    put(Transactions, "_is_wanted", is_wanted)


@mutant("a node that gave up waiting for ownership keeps the copy it had", "impatient")
def given_up_upgrade_kept() -> None:
    LINE[LineState.UPGRADING][Input.GIVE_UP] = LineState.SHARED


@mutant("a copy that is reported beside the epoch takes the line from its owner", "local")
def report_takes_line() -> None:
    recovered = Transactions._recovered

    def greedy(self: Transactions, entry: Entry) -> Any:
        offer = entry.offers.get(entry.owner) if entry.owner else None
        if entry.owner and offer is not None:
            self._directory.forget(entry, entry.owner)
            if offer.record.version > entry.record.version:
                self._directory.set_record(entry, offer.record, dirty=True, confirmed=False)
        return recovered(self, entry)

    put(Transactions, "_recovered", greedy)


@mutant("an Ask that comes twice is served twice")
def asks_served_twice() -> None:
    ask = Home.ask

    def serve(self: Home, source: Any, message: Any) -> None:
        lease = self.directory.leases.find(source, message.lease)
        if lease is not None:
            lease.floor = 0
            lease.answers.pop(message.number, None)
        ask(self, source, message)

    put(Home, "ask", serve)


@mutant("an owner whose write its home committed is not judged by the home any more", "mixed")
def owner_unjudged() -> None:
    def is_behind(self: Transactions, entry: Entry) -> bool:
        return entry.owner is not None and self._directory.mode(entry) is Durability.LOCAL

    def owner_came_empty(self: Transactions, entry: Entry, txn: Any) -> Any:
        return self._commits.make_durable(entry, txn)

    put(Transactions, "_is_behind", is_behind)
    put(Transactions, "_owner_came_empty", owner_came_empty)


# --- Leases -----------------------------------------------------------------------------------


@mutant("a copy is served without a look at the copy lease")
def copy_lease_unchecked() -> None:
    def is_live(self: HeldLines, one: Any) -> bool:
        return one.home is not None and self._context.holds_node_lease()

    put(HeldLines, "is_live", is_live)
    put(Leases, "expire", lambda _self: None)


@mutant("a copy lease that has lapsed is revived by a late answer")
def lapsed_lease_revived() -> None:
    put(HeldLease, "has_lapsed", lambda _self, _now_ms: False)


@mutant("a holder counts its copy lease from the answer, not from asking", "leases")
def lease_counted_from_answer() -> None:
    put(
        HeldLease,
        "begin",
        lambda self, number, _sent_ms, lease_ms, now_ms: _begin(self, number, lease_ms, now_ms),
    )
    renewed = Leases.renewed

    def late(self: Leases, source: Any, message: Any) -> bool:
        lease = self._held.leases.get(source)
        if lease is not None and message.number == lease.renewal:
            lease.renewal_sent_ms = self._context.now_ms
        return renewed(self, source, message)

    put(Leases, "renewed", late)


def _begin(self: HeldLease, number: int, lease_ms: int, now_ms: int) -> bool:
    self.number, self.ends_ms = number, now_ms + lease_ms
    return True


@mutant("a new lease is made on the word of a request from before the current one")
def old_request_makes_lease() -> None:
    renew = Home.renew

    def gullible(self: Home, source: Any, message: Any) -> None:
        leases = self.directory.leases
        lease = leases.by_holder.get(source)
        if not message.lease and lease is not None and message.number < lease.made_by:
            leases.made_by[source] = 0
        renew(self, source, message)

    put(Home, "renew", gullible)


@mutant("a home goes on without a holder as soon as that is late")
def holder_given_up_early() -> None:
    send = Outgoing.send_yields

    def impatient(self: Outgoing, entry: Any, txn: Any) -> None:
        if txn.unsure:
            for holder in list(txn.waiting):
                txn.waiting.discard(holder)
                _forget(self, entry, holder)
            txn.unsure = False
            self._timers.set(("txn", entry.key), self._context.now_ms + 1)
            return
        txn.unsure = True
        send(self, entry, txn)

    put(Outgoing, "send_yields", impatient)


@mutant("the node lease is not looked at")
def node_lease_unchecked() -> None:
    put(Context, "holds_node_lease", lambda self: not self.retired)


# --- Epochs and recovery ----------------------------------------------------------------------


@mutant("a new home serves before the others have acknowledged the epoch")
def recovery_without_reports() -> None:
    adopt = Handover.adopt

    def hurried(self: Handover, **arguments: Any) -> None:
        adopt(self, **arguments)
        self._reported = set(self._context.peers)

    put(Handover, "adopt", hurried)


@mutant("a new home does not wait for the leases of those who left", "ring")
def recovery_before_leases_end() -> None:
    adopt = Handover.adopt

    def hurried(self: Handover, **arguments: Any) -> None:
        adopt(self, **arguments)
        self._left_until_ms = 0

    put(Handover, "adopt", hurried)


@mutant("messages of an older epoch are taken")
def old_epoch_taken() -> None:
    message_of = CacheNode._message

    def lax(self: CacheNode, event: Any) -> None:
        known = event.source in self.context.peers
        ring = isinstance(event.message, RingNews | RingWanted)
        if event.epoch < self.context.epoch and known and not ring:
            event = node.PeerMessage(event.source, self.context.epoch, event.message)
        message_of(self, event)

    put(CacheNode, "_message", lax)


@mutant("lines are kept when their home moves")
def moved_lines_kept() -> None:
    drop = Leases._drop

    def careless(self: Leases, one: Any, *, keep_local: bool) -> None:
        if one.ask is None and one.state in {LineState.SHARED, LineState.EXCLUSIVE}:
            return
        drop(self, one, keep_local=keep_local)

    put(Leases, "_drop", careless)


@mutant("what was kept is not reported to the new home", "single")
def copies_not_reported() -> None:
    put(Handover, "_split", lambda _self, _copies: [()])


@mutant("the newest survivor is taken, whatever the mark in Redis says", "deaths")
def survivors_not_judged() -> None:
    def choose(loaded: Loaded, offers: Any, _reporters: Any) -> Survivor:
        records = (offer.record for offer in offers)
        best = max(records, key=lambda record: record.version, default=None)
        newer = best is not None and best.version > loaded.copy.version
        return Survivor(record=best if newer else None)

    put(judging, "choose_survivor", choose)
    put(requests, "choose_survivor", choose)


@mutant("a lost line answers with the last value that Redis has", "deaths")
def lost_line_answers_old_value() -> None:
    choose = judging.choose_survivor

    def forgiving(loaded: Loaded, kept: Any, reporters: Any) -> Survivor:
        survivor = choose(loaded, kept, reporters)
        return Survivor() if survivor.lost else survivor

    put(requests, "choose_survivor", forgiving)


@mutant("what was deleted comes back from who kept it, once Redis has forgotten that", "forgetful")
def forgotten_deletion_undone() -> None:
    choose = judging.choose_survivor

    def gullible(loaded: Loaded, offers: Any, reporters: Any) -> Survivor:
        return choose(loaded, [offer._replace(unmarked=True) for offer in offers], reporters)

    put(requests, "choose_survivor", gullible)


@mutant("a value is shown to others before it is known to be in a second place")
def unconfirmed_shown() -> None:
    take = Directory.set_record

    def trusting(self: Directory, entry: Any, record: Any, *, dirty: bool, confirmed: bool) -> None:
        take(self, entry, record, dirty=dirty, confirmed=True)
        entry.confirmed = True

    put(Directory, "set_record", trusting)
    taken = Home._take_yielded

    def trusted(self: Home, entry: Any, txn: Any, source: Any, message: Any) -> None:
        taken(self, entry, txn, source, message)
        entry.confirmed = True

    put(Home, "_take_yielded", trusted)


@mutant("what has expired in Redis is served once more when its home reads it")
def expired_value_loaded() -> None:
    for module in (home, requests, transactions):
        put(module, "received", lambda copy, now_ms: received(copy, now_ms + 1))


# --- Redis and marks --------------------------------------------------------------------------


@mutant("Redis takes a write-back without a look at the version")
def write_back_unversioned() -> None:
    put_ = Redis._put

    def careless(self: Redis, effect: Any, known: Key) -> Any:
        if effect.copy is not None:
            known.version = min(known.version, (0, 0))  # type: ignore[assignment]
        return put_(self, effect, known)

    put(Redis, "_put", careless)


@mutant("an older write-back clears the mark of a newer generation", "deaths")
def mark_cleared_by_older() -> None:
    put_ = Redis._put

    def careless(self: Redis, effect: Any, known: Key) -> Any:
        result = put_(self, effect, known)
        if effect.copy is not None and effect.mark is None:
            known.mark = None
        return result

    put(Redis, "_put", careless)


@mutant("a deletion leaves no tombstone: an older value comes back")
def deleted_resurrected() -> None:
    put_ = Redis._put

    def forgetful(self: Redis, effect: Any, known: Key) -> Any:
        result = put_(self, effect, known)
        if known.value is None:
            known.version = type(known.version)(0, 0)
        return result

    put(Redis, "_put", forgetful)


@mutant("Redis does not refuse homes of older epochs")
def no_floor() -> None:
    load = Redis._load

    def lax(self: Redis, effect: Any, known: Key) -> Any:
        result = load(self, effect, known)
        known.floor = 0
        return result

    put(Redis, "_load", lax)


@mutant("a put that Redis refuses counts as undone, although it may have been sent twice", "twice")
def refused_put_undone() -> None:
    apply = Redis.apply

    def hasty(self: Redis, effect: Any) -> Any:
        answer = apply(self, effect)
        if isinstance(answer, RedisFailed):
            return RedisFailed(answer.request, undone=True, full=answer.full)
        return answer

    put(Redis, "apply", hasty)


@mutant("Redis takes what comes late for a key that it has forgotten", "forgetful")
def forgotten_key_written() -> None:
    put(Redis, "_is_forgotten", lambda _self, _known: False)


@mutant("a home that was stopped goes on with a key that Redis has forgotten", "forgetful")
def forgotten_key_taken_back() -> None:
    read_again = Requests._read_again

    def eager(self: Requests, entry: Entry, timer: str) -> int:
        context = self._context
        ends_ms, context.lease_ends_ms = context.lease_ends_ms, context.now_ms + 1
        try:
            return read_again(self, entry, timer)
        finally:
            context.lease_ends_ms = ends_ms

    put(Requests, "_read_again", eager)
    put(Requests, "_was_read_again", lambda _self, entry: setattr(entry, "forgotten", False))


@mutant("no mark is set before a line becomes dirty", "deaths")
def no_mark() -> None:
    TXN[TxnState.LOADING].add(TxnState.MIRRORING)
    put(Commits, "_is_marked", lambda _self, _entry, _txn, _places: True)


@mutant("the mark stays when a dirty line gets another owner", "deaths")
def mark_of_other_places() -> None:
    put(
        Commits,
        "_is_marked",
        lambda _self, entry, txn, _places: (
            entry.mark is not None and (entry.dirty or entry.mark.version == txn.version)
        ),
    )


@mutant("a write of the home itself is acknowledged before the successor has the copy")
def ack_before_mirror() -> None:
    send = Outgoing.send_mirror

    def hurried(self: Outgoing, entry: Any, txn: Any) -> None:
        send(self, entry, txn)
        txn.mirror, txn.mirrored = None, True
        self._timers.set(("txn", entry.key), self._context.now_ms)

    put(Outgoing, "send_mirror", hurried)


@mutant("a Modified line is evicted without a write-back", "local")
def evicted_without_write_back() -> None:
    def drop(self: WriteBacks, one: Any, *, stays: bool) -> None:
        if not stays:
            self._held.become(one, Input.DROP, None)
            self._held.settle(one)

    put(WriteBacks, "begin", drop)


@mutant("what was written during a write-back counts as written back", "local")
def written_since_counts_as_clean() -> None:
    LINE[LineState.CLEANING][Input.WRITTEN_BACK_OLDER] = LineState.EXCLUSIVE
    LINE[LineState.WRITING_BACK][Input.WRITTEN_BACK_OLDER] = LineState.EXCLUSIVE


@mutant("an invalidated owner keeps nothing until Redis has its value (local durability)", "local")
def yielded_value_not_kept() -> None:
    put(HeldLines, "keep", lambda _self, _line: None)


def _leave_at_once(self: Host) -> None:
    self.draining = True
    self.leave()


@mutant("a node that is told to drain leaves the ring before its cache is written back", "local")
def left_before_written_back() -> None:
    put(Host, "drain", _leave_at_once)


@mutant("a node leaves the ring at once, and serves on while its lease lasts", "ring")
def left_under_a_lease() -> None:
    put(Host, "drain", _leave_at_once)

    def leave(self: LeaseHolder) -> None:
        self.is_leaving = True

    put(LeaseHolder, "leave", leave)


@mutant("a node retires before Redis has everything")
def retired_dirty() -> None:
    put(Lines, "is_clean", property(lambda _self: True))
    put(Directory, "is_clean", property(lambda _self: True))
    put(KeptCopies, "__len__", lambda _self: 0)


# --- Writes under way when the home moves ------------------------------------------------------


@mutant("a home that gives up a write says that nothing was done, whatever it has sent to Redis")
def given_up_for_sure() -> None:
    put(Endings, "_given_up", lambda _self, _txn: GivenUp())


@mutant("a write in doubt is made again without a look at what the next home has")
def doubt_made_again() -> None:
    given_up = Writes.given_up

    def hurried(self: Writes, line: Any, ask: Any, version: Any) -> None:
        given_up(self, line, ask, ABSENT)

    put(Writes, "given_up", hurried)


@mutant("a write in doubt is taken for made if the next home has something older")
def doubt_taken_for_made() -> None:
    def judge(self: Writes, line: Any, version: Any) -> None:
        doubt = line.doubt
        if doubt is None:
            return
        if version < doubt.version:
            self.answer(line, Written(doubt.version))
        else:
            self._write_again(line, doubt)

    put(Writes, "judge_doubt", judge)


@mutant("a commit that the home of before tells is installed")
def old_commit_installed() -> None:
    drop = Leases._drop

    def keep(self: Leases, line: Any, *, keep_local: bool) -> None:
        drop(self, line, keep_local=keep_local)
        if line.ask is not None:
            line.ask.moved = False

    put(Leases, "_drop", keep)
