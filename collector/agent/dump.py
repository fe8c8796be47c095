"""bid and dump: a process is offered to the dumpers of others that are registered, if any are.

The policy is a dumper as well: it bids GENERIC, and was here first. Whoever bids more has the
process before it, the highest first; whoever fails, hangs or dies makes room for the next one, and
at last for the policy. So no death is lost by one of them.

A process that waits for its dumper is released when that says so; else its memory is pinned and it
has gone. Nothing here waits: what dumpers say comes from the hub's thread, and what is to follow is
done in a lane of its own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial

import msgspec

from collector.agent.context import Context
from collector.agent.crash import Crash
from collector.agent.dump_event import Event
from collector.agent.hold import release_or_hold
from collector.dumpers.desk import Dumped
from collector.dumpers.dumper import Bid
from collector.dumpers.protocol import GENERIC, message
from collector.model import Capture, DumpFacts, Release
from collector.policy.limit import Admission

log = logging.getLogger(__name__)

Attempt = Callable[[Callable[[], None]], None]


def offer(context: Context, crash: Crash, attempt: Attempt, go_on: Callable[[Crash], None]) -> bool:
    """Ask for bids. False: nobody may bid. Else `go_on` is called later, in another thread, when
    it is the policy's turn; what may fail is done through `attempt`.

    What the policy keeps no memory of, by rule or by RLIMIT_CORE, is nobody's; nor is what it
    redacts, for a dumper sees the process as it is.
    """
    hub, gathered, decided = context.dumpers, crash.gathered, crash.decided
    if hub is None or gathered.spared:
        return False
    hub.crashed(gathered.handoff.pid)  # a dumper is not asked about itself
    action = decided.decision.action
    if action.capture in (Capture.NONE, Capture.RECORD):
        return False
    if action.redact.anything:
        return False
    if action.honour_rlimit and gathered.dying.core_limit == 0:
        return False
    if not hub.wanted(decided.facts, held=gathered.pin is None):
        return False
    return _Offer(context, crash, attempt, go_on).begin()


class _Offer:
    """One process that is offered."""

    def __init__(
        self, context: Context, crash: Crash, attempt: Attempt, go_on: Callable[[Crash], None]
    ) -> None:
        assert context.dumpers is not None
        self._context, self._crash, self._hub = context, crash, context.dumpers
        self._attempt, self._go_on = attempt, go_on
        self._bids: list[Bid] = []
        self._held = crash.gathered.pin is None

    def begin(self) -> bool:
        """Whether dumpers were asked."""
        hold = self._context.policy.policy.hold
        if self._held and hold.bids > hold.patience / 2:  # else the watchdog looks on
            self._crash.gathered.handoff.keep(hold.bids + hold.patience)
        facts = self._crash.decided.facts
        with Event(self._context, self._crash, held=self._held) as event:
            try:
                asks = self._hub.asks(facts, held=self._held)
                probe = event.probe() if asks else message("EVENT", pid=self._crash.key.pid)
            except OSError as error:  # no descriptors left, for example
                log.error("process %d: dumpers are not asked: %s", self._crash.key.pid, error)
                return False
            self._hub.ask(facts, probe, held=self._held, done=self._have_bid)
        return True

    def _have_bid(self, bids: list[Bid]) -> None:
        # the policy's own bid is GENERIC, and it was registered before all others
        self._bids = [bid for bid in bids if bid.priority > GENERIC]
        self._follow(self._next)

    def _follow(self, work: Callable[[], None]) -> None:
        """Not in the hub's thread, if there is another one."""
        task = partial(self._attempt, work)
        if not self._context.lanes.dumps.submit(task, dropped=self._crash.let_go):
            task()

    def _next(self) -> None:
        """Give it to who has bid most, or to the policy."""
        bid = self._turn()
        if bid is None:
            self._go_on(self._crash)
            return
        if self._held and not bid.pin:
            # then the policy has as long as it would have had without dumpers
            patience = self._context.policy.policy.hold.patience
            self._crash.gathered.handoff.keep(self._left_s() + patience)
        elif self._held and not self._crash.is_placed:
            self._pin()
        with Event(self._context, self._crash, held=self._held) as event:
            try:
                dump = event.dump()
            except OSError as error:
                self._failed(bid, error)
                return
            most_s = self._left_s() if self._held else None
            done = partial(self._dumped, bid)
            self._hub.dump(bid, dump, held=self._held, done=done, most_s=most_s)

    def _turn(self) -> Bid | None:
        """Whose turn it is; None: the policy's."""
        while self._bids:
            bid = self._bids.pop(0)
            if bid.pin or (self._held and self._left_s() > 0):
                return bid
        return None

    def _left_s(self) -> float:
        """Seconds that the process may still wait for dumpers."""
        waited = time.monotonic() - self._crash.gathered.handoff.accepted_ns / 1e9
        return self._hub.most_s - waited

    def _pin(self) -> None:
        """Release it with its memory pinned, if there is room; else it waits. However little of it
        the policy's limits let us keep."""
        decided = self._crash.decided
        whole = Admission(capture=Capture.FULL, reason=None)
        self._crash.decided = msgspec.structs.replace(decided, admission=whole)
        self._crash.release = release_or_hold(self._context, self._crash)
        self._crash.decided = decided
        self._held = self._crash.release.mode is not Release.INSTANT

    def _failed(self, bid: Bid, error: OSError) -> None:
        self._dumped(bid, Dumped(None, f"it could not be told: {error.strerror}", 0.0))

    def _dumped(self, bid: Bid, dumped: Dumped) -> None:
        """What became of it. In the hub's thread, or in ours."""
        self._crash.dumps.append(
            DumpFacts(
                name=bid.name,
                priority=bid.priority,
                pid=bid.peer.pid,
                uid=bid.peer.uid,
                status=dumped.status,
                note=dumped.note,
                seconds=round(dumped.seconds, 3),
                held=self._held,
                passed=dumped.passed,
            )
        )
        outcome = "handled" if dumped.status == 0 else "hung" if dumped.hung else "failed"
        self._context.metrics.dumps.labels(outcome).inc()
        if dumped.status == 0 and not dumped.passed:
            self._bids = []
            self._leave_to(bid)
        self._follow(self._next)

    def _leave_to(self, bid: Bid) -> None:
        """Its memory is the dumper's by now: it goes at once, and is explained if there is room."""
        if self._held and self._crash.is_placed:
            del self._crash.release  # it was to wait for a core
        decided = self._crash.decided
        action = msgspec.structs.replace(decided.decision.action, release=Release.INSTANT)
        self._crash.decided = msgspec.structs.replace(
            decided,
            decision=msgspec.structs.replace(decided.decision, action=action),
            admission=Admission(capture=Capture.RECORD, reason=f"dumper {bid.name} has taken it"),
        )
