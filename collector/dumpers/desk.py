"""What dumpers are asked about and have: bids that are awaited, processes that are given out.

Each number of an event is in one place at a time: bids are awaited, or one dumper has the process.
Nothing here waits, or listens (see hub.py); what is to be called back is called without the lock.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import msgspec

from collector.dumpers.dumper import Bid, Dumper
from collector.dumpers.protocol import NOMATCH, Message, message
from collector.dumpers.reach import rows_of
from collector.native.contract import BIDDERS, Bidder
from collector.policy.types import Facts, Match

log = logging.getLogger(__name__)

_MISSED = 3  # bids in a row
_SHOWN = 64  # processes that can be looked at, at a time; each has a dozen descriptors


class Dumped(msgspec.Struct, frozen=True):
    """What a dumper did with a process. status: an errno, 0: all went well; None: it never said."""

    status: int | None
    note: str  # its own words; of a status of None ours
    seconds: float
    hung: bool = False  # its time was over
    passed: bool = False  # others are to have it as well


Calls = list[Callable[[], None]]


class _Asked:
    """One process that dumpers bid for."""

    def __init__(self, done: Callable[[list[Bid]], None], until: float) -> None:
        self.done = done
        self.until = until  # of time.monotonic()
        self.waits: set[int] = set()  # ids of dumpers
        self.bids: list[Bid] = []


class _Had(NamedTuple):
    """One process that a dumper has."""

    dumper: int
    done: Callable[[Dumped], None]
    since: float  # of time.monotonic()
    until: float
    event: Message | None  # a copy for those who look at it, if it waits
    lookers: list[Dumper]


class Desk:
    """Thread-safe."""

    def __init__(
        self,
        bid_s: float,
        most_s: float,
        reach: Callable[[list[Bidder]], None] = lambda rows: None,
        missed: Callable[[], object] = lambda: None,
    ) -> None:
        """bid_s: seconds that a bid may take. most_s: that a dumper may have a process.

        reach: told which processes anybody may bid for while they are held, whenever that changes.
        missed: called for each bid that did not come in time.
        """
        self._bid_s, self.most_s = bid_s, most_s
        self._reach, self._missed = reach, missed
        self._lock = threading.RLock()
        self._settled = threading.Condition(self._lock)
        self._dumpers: dict[int, Dumper] = {}  # by id, which is the order of registration
        self._unknown: list[Dumper] = []
        self._lookers: list[Dumper] = []  # who looks at what others have
        self._events = itertools.count(1)
        self._asked: dict[int, _Asked] = {}  # by event
        self._had: dict[int, _Had] = {}  # by event
        self._closing = False

    def _look(self) -> None:
        """There is a new limit of time, or somebody new."""

    def names(self) -> list[str]:
        """Of the dumpers that are registered, in that order."""
        with self._lock:
            return [d.wants.name for d in self._dumpers.values() if d.wants]

    def crashed(self, pid: int) -> None:
        """A process is dying, and waits: if it is a dumper, it is one no more."""
        if not self._dumpers:
            return
        with self._calls() as calls:
            for dumper in [d for d in self._dumpers.values() if d.peer.pid == pid]:
                self._drop(dumper, "it has crashed", calls)

    def dismiss(self, name: str) -> None:
        """Have a dumper leave when it has finished what it has."""
        with self._calls() as calls:
            for dumper in [d for d in self._dumpers.values() if d.wants and d.wants.name == name]:
                self._leave(dumper, calls)

    def wanted(self, facts: Facts, *, held: bool) -> bool:
        """Whether anybody who is here may bid for such a process. held: it waits for us."""
        if not self._dumpers:
            return False
        with self._lock:
            return any(d.may_have(facts, held=held) for d in self._dumpers.values())

    def asks(self, facts: Facts, *, held: bool) -> bool:
        """Whether anybody wants to look at such a process before it bids."""
        with self._lock:
            return any(
                d.wants is not None and d.wants.priority is None and d.may_have(facts, held=held)
                for d in self._dumpers.values()
            )

    def ask(
        self,
        facts: Facts,
        event: Message,
        *,
        held: bool,
        done: Callable[[list[Bid]], None],
    ) -> None:
        """Have everybody bid who may have such a process; `done` gets the bids, the highest first,
        ties in the order of registration. event: its fields and descriptors, which stay the
        caller's, who may close them afterwards."""
        with self._calls() as calls:
            number = next(self._events)
            asked = _Asked(done, time.monotonic() + self._bid_s)
            self._asked[number] = asked
            probe = joined(message("PROBE", event=number, held=held), event)
            for dumper in list(self._dumpers.values()):
                if dumper.wants is None or not dumper.may_have(facts, held=held):
                    continue
                if dumper.wants.priority is not None:
                    asked.bids.append(dumper.bid(dumper.wants.priority))
                elif dumper.tell(probe):
                    asked.waits.add(dumper.id)
                else:
                    self._has_missed(dumper, calls)
            if not asked.waits:
                self._decide(number, calls)
        self._look()

    def dump(
        self,
        bid: Bid,
        event: Message,
        *,
        held: bool,
        done: Callable[[Dumped], None],
        most_s: float | None = None,
    ) -> None:
        """Give a process to whoever bid for it. event: as for `ask`. most_s: seconds at most that
        it may have it; None: as many as usual."""
        with self._calls() as calls:
            number, now = next(self._events), time.monotonic()
            dumper = self._dumpers.get(bid.dumper)
            usual = self.most_s if dumper is None else dumper.most_s or self.most_s
            most_s = usual if most_s is None else max(0.0, min(usual, most_s))
            shown = self._copy_of(event) if held else None
            self._had[number] = _Had(bid.dumper, done, now, now + most_s, shown, [])
            dump = message(
                "DUMP",
                event=number,
                priority=bid.priority,
                held=held,
                most_ms=round(most_s * 1e3),
            )
            if dumper is None or dumper.leaving:
                self._over(number, None, "it is not registered any more", calls)
            elif len(dumper.has) >= dumper.most:
                self._over(number, None, "it has as many processes as it takes already", calls)
            elif not dumper.tell(joined(dump, event)):
                self._over(number, None, "it does not read what it is told", calls)
            else:
                dumper.has.add(number)
        self._look()

    # ---- with the lock held; what is called back is collected, and called without it

    @contextlib.contextmanager
    def _calls(self) -> Iterator[Calls]:
        calls: Calls = []
        try:
            with self._lock:
                yield calls
        finally:
            for call in calls:
                try:
                    call()
                except Exception:  # others are to be called as well
                    log.exception("dumpers: what was to follow failed")

    def _decide(self, number: int, calls: Calls) -> None:
        """All bids are in, or their time is over."""
        asked = self._asked.pop(number)
        asked.bids.sort(key=lambda bid: (-bid.priority, bid.dumper))
        calls.append(partial(asked.done, asked.bids))
        self._settled.notify_all()

    def _over(
        self,
        number: int,
        status: int | None,
        note: str,
        calls: Calls,
        *,
        hung: bool = False,
        passed: bool = False,
    ) -> None:
        """Nobody has this process any more."""
        had = self._had.pop(number)
        if had.event is not None:
            had.event.close()
        for looker in had.lookers:
            looker.tell(message("END", event=number, why="its dumper does not have it any more"))
            self._drop(looker, "what it looked at is over", calls)
        dumper = self._dumpers.get(had.dumper)
        if dumper is not None:
            dumper.has.discard(number)
        seconds = time.monotonic() - had.since
        calls.append(partial(had.done, Dumped(status, note, seconds, hung, passed)))
        if dumper is not None and dumper.leaving and not dumper.has:
            dumper.tell(message("UNREGISTERED"))
            self._drop(dumper, "it has left", calls)
        self._settled.notify_all()

    def _has_missed(self, dumper: Dumper, calls: Calls) -> None:
        dumper.missed += 1
        self._missed()
        if dumper.missed >= _MISSED:
            self._drop(dumper, f"it did not bid in time {_MISSED} times in a row", calls)

    def _leave(self, dumper: Dumper, calls: Calls) -> None:
        dumper.leaving = True
        self._tell_reach()
        for number, asked in list(self._asked.items()):
            self._has_bid(number, asked, dumper, NOMATCH, calls)
        if not dumper.has:
            dumper.tell(message("UNREGISTERED"))
            self._drop(dumper, "it has left", calls)

    def _drop(self, dumper: Dumper, why: str, calls: Calls) -> None:
        """It is gone, or is to be: what it had is over."""
        if dumper in self._unknown:
            self._unknown.remove(dumper)
        elif dumper in self._lookers:
            self._lookers.remove(dumper)
        elif self._dumpers.pop(dumper.id, None) is None:
            return  # it was gone before
        else:
            log.info("dumper %s (pid %d) is gone: %s", dumper.name, dumper.peer.pid, why)
            self._tell_reach()
        for number, asked in list(self._asked.items()):
            self._has_bid(number, asked, dumper, NOMATCH, calls)
        for number in sorted(dumper.has):
            dumper.tell(message("END", event=number, why=why))
            self._over(number, None, why, calls)
        dumper.close()
        if dumper.gone is not None:
            calls.append(partial(dumper.gone, why))

    def _has_bid(
        self,
        number: int,
        asked: _Asked,
        dumper: Dumper,
        priority: int,
        calls: Calls,
    ) -> None:
        if dumper.id not in asked.waits:
            return
        asked.waits.remove(dumper.id)
        if priority > NOMATCH:
            asked.bids.append(dumper.bid(priority))
        if not asked.waits:
            self._decide(number, calls)

    def _copy_of(self, event: Message) -> Message | None:
        """With descriptors of its own. None: of so many there are some already."""
        if sum(had.event is not None for had in self._had.values()) >= _SHOWN:
            return None
        fds: dict[str, int] = {}
        try:
            for name, fd in event.fds.items():
                fds[name] = os.dup(fd)
        except OSError:
            for fd in fds.values():
                os.close(fd)
            return None
        return Message(event.verb, event.fields, fds)

    def _tell_reach(self) -> None:
        rows: list[Bidder] = []
        for dumper in self._dumpers.values():
            if dumper.wants is not None and not dumper.wants.pin and not dumper.leaving:
                rows += rows_of(dumper.wants.match)
        if len(rows) > BIDDERS:
            rows = rows_of(Match())
        self._reach([] if self._closing else rows)


def joined(first: Message, event: Message) -> Message:
    """A message about a process: with what is known of it, and its descriptors."""
    return Message(first.verb, (*first.fields, *event.fields), event.fds)
