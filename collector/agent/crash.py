"""One death as one value: it gains facts stage by stage, from its first event to its closed record.

    seen       probe     the events of BPF, as they come in
    gathered   gather    the process itself, while it waits or its memory is pinned
    decided    decide    what policy and limits want of it
    release    release   when it may go, and why
    record     all       what is known of it in the end; `facts` has what each stage adds

What is gathered, decided and planned is there only of a process that was handed over, from its
stage on. A record has parts that are worked on at the same time (the core, the explanation, the
end of the process); when the last of them is done it is closed, once. It is on disk when it opens,
when its core is there, and when it is closed; between these it grows in memory.
"""

from __future__ import annotations

import enum
import logging
import threading
import time
from collections.abc import Mapping, Sequence

import msgspec

from collector.agent.assemble import Seen
from collector.agent.facts import Facts
from collector.agent.gather import Gathered
from collector.agent.release import ReleaseDecision
from collector.capture.job import Evidence
from collector.errors import CorewardError
from collector.explain.facts import with_explanation
from collector.explain.types import Explanation
from collector.model import DumpFacts, ProcessKey, Record, Signature
from collector.policy import types as policy
from collector.policy.collect import Place, Stage
from collector.policy.limit import Admission
from collector.redact.record import withheld
from collector.redact.types import Redact
from collector.store.store import Store

log = logging.getLogger(__name__)


class State(enum.Enum):
    """Who has a death."""

    SEEN = enum.auto()  # nobody: it is complete when its end is seen
    HELD = enum.auto()  # a worker, for the process was handed over
    DONE = enum.auto()  # nobody any more: only its end may still come


class Decided(msgspec.Struct, frozen=True, kw_only=True):
    """What policy and limits want of a death."""

    facts: policy.Facts
    decision: policy.Decision
    admission: Admission
    explain: bool
    stage: Stage | None = None  # which of the deaths at its place it is, where policy asks
    like: Signature | None = None  # of one at the same place


class Crash:
    """`registry` guards `seen` and `state`; the record is thread-safe by itself."""

    gathered: Gathered
    decided: Decided
    release: ReleaseDecision

    def __init__(self, key: ProcessKey) -> None:
        self.key = key
        self.seen = Seen()
        self.state = State.SEEN
        self.since = time.monotonic()  # of its state
        self.not_held: str | None = None  # why its hand-off came to nothing
        self.place: Place | None = None  # where it died, once that was decided about
        self.dumps: list[DumpFacts] = []  # what dumpers did with it
        self.redact = Redact()  # what is to be hidden of it, once that was decided
        self.secrets: dict[str, list[str]] = {}  # by rule: values that are to be hidden
        self.stored = False  # whether the store has its record, in whatever form
        self._lock = threading.Lock()
        self._record: Record | None = None
        self._open: set[str] = set()

    @property
    def is_placed(self) -> bool:
        """Whether it was said when the process may go."""
        return hasattr(self, "release")

    @property
    def dying_thread(self) -> int | None:
        """In its own pid namespace; None: not known."""
        who = self.seen.who
        return self.gathered.first or (who.ns_tid if who else None)

    @property
    def evidence(self) -> Evidence:
        """What the notes of its core are made of."""
        gathered = self.gathered
        return Evidence(
            pid=gathered.handoff.pid,
            tid=self.dying_thread,
            signal=self.signal,
            siginfo=self.siginfo,
            text=gathered.dying.text,
            threads=gathered.threads,
            mappings=gathered.mappings,
            head=gathered.head,
        )

    @property
    def signal(self) -> int:
        """0: not known."""
        return self.seen.signal or self.gathered.handoff.signal or 0

    @property
    def siginfo(self) -> bytes:
        """128 bytes; none if BPF did not see the signal."""
        return self.seen.fatal.siginfo if self.seen.fatal else b""

    @property
    def was_handled(self) -> bool:
        """Whether a dumper of others has taken it."""
        last = self.dumps[-1] if self.dumps else None
        return last is not None and last.status == 0 and not last.passed

    def let_go(self) -> None:
        """Release the process, and its memory: what is wanted of it is elsewhere by now."""
        self.gathered.close()
        del self.gathered

    # ---- the record

    def open(self, record: Record, part: str) -> None:
        """Begin the record, with its first part."""
        if self.dumps:
            record = msgspec.structs.replace(record, dumpers=self.dumps)
        self._record, self._open = record, {part}

    @property
    def is_open(self) -> bool:
        """Whether it has a record, or had one: policy may want none."""
        return self._record is not None

    @property
    def record(self) -> Record:
        assert self._record is not None, "its record was not opened"
        return self._record

    def begin(self, part: str) -> None:
        """Something is still to be learnt: the record stays open until `end(part)`."""
        with self._lock:
            self._open.add(part)

    def learn(self, facts: Facts) -> None:
        """Add what a stage knows."""
        with self._lock:
            self._record = facts.added_to(self.record)

    def hide(self, secrets: Mapping[str, Sequence[str]]) -> None:
        """Values that are to be hidden in its texts, beside those that are known: a writer that
        takes another's place may not have them all."""
        with self._lock:
            self.secrets = {
                rule: list(dict.fromkeys((*self.secrets.get(rule, ()), *secrets.get(rule, ()))))
                for rule in {**self.secrets, **secrets}
            }

    def explained(self, explanation: Explanation) -> None:
        """Add what its core said."""
        with self._lock:
            self._record = with_explanation(self.record, explanation)

    def lose(self, part: str, why: str) -> None:
        """Name a part that could not be had."""
        with self._lock:
            lost = {**self.record.lost, part: why}
            self._record = msgspec.structs.replace(self.record, lost=lost)

    def keep(self, store: Store) -> bool:
        """Put the record on disk as far as it goes; whether it is there."""
        with self._lock:
            record = withheld(self.record) if self.redact.texts else self.record
            try:
                store.put(record)
            except (CorewardError, OSError) as error:  # a full disk must not stop the agent
                log.error("record %s cannot be stored: %s", self.record.id, error)
                return False
            self.stored = True
            return True

    def lacks(self, *parts: str) -> bool:
        """Whether it lacks a part other than these."""
        with self._lock:
            return not self._open <= {*parts}

    def end(self, part: str) -> bool:
        """A part is done. True, once: it was the last, and the record is whole."""
        with self._lock:
            was_open = part in self._open
            self._open.discard(part)
            return was_open and not self._open
