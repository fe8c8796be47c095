"""One hand-off, from the native part to the writer: the stages in their order.

    gather               registers, mappings, files   (natively; taken over here)
    pin and release, or  its memory stays, it goes    (natively, where nothing is to be weighed;
    hold                 or it waits for its core      else `hold`, after `decide`)
    decide               policy, limits
    bid                  dumpers of others: who takes it has it first, see `dump`
    write                a process of its own writes the core       (`capture` lane)
    explain              another one unwinds the stack              (`explain` lane)
    export               store, metrics, one line                   (whoever is last)

Where policy and room allow it the process was released before this begins. Else it is held while
this runs, some milliseconds: what happens here is as little as can be. All decoding, and all
memory, is left for later.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial

from collector.agent.context import Context
from collector.agent.crash import Crash
from collector.agent.decide import decide
from collector.agent.events import complete, take_events
from collector.agent.export import count, open_held, recorded
from collector.agent.gather import Gathered, gather
from collector.agent.hold import release_or_hold
from collector.agent.logs import read_logs
from collector.agent.unheld import record_untold
from collector.agent.unit import ask_systemd
from collector.agent.write import give_up, write
from collector.errors import HoldError, in_words
from collector.handoff.handoff import HandOff
from collector.handoff.native import Taken
from collector.model import Capture, Outcome, ProcessKey

log = logging.getLogger(__name__)


def arrived(context: Context, taken: Taken) -> None:
    """Have a worker see to a process that was released.

    The caller itself sees to one that is held, because its priority is higher; and to one for
    which there is no worker: meanwhile the kernel's backlog holds new ones.
    """
    if taken.pin is None and not taken.spared:
        with context.native.busy():
            handle(context, taken)
        return
    work = partial(handle, context, taken)
    # dropped: nobody will look at this process any more, and what BPF saw of it is all
    if not context.lanes.handoffs.submit(work, dropped=taken.close):
        work()


def handle(context: Context, taken: Taken) -> None:
    """From the hand-off to the writer's queue, for one process."""
    crash: Crash | None = None
    try:
        if taken.key is not None:
            crash = context.registry.hold(taken.key)
            if crash is None:
                taken.close()
                return
        gathered = gather(taken)
        try:
            crash = _join(context, gathered)
        except BaseException:
            gathered.close()
            raise
    except Exception as error:
        _fail(context, taken.handoff, taken.key, taken.texts, crash, error)
        return
    _attempt(context, crash, partial(_begin, context, crash))


def _begin(context: Context, crash: Crash) -> None:
    """Until somebody else has it, or to the writer's queue."""
    take_events(context)  # those that came before it
    crash.decided = decide(context, crash)
    if context.dumpers is not None:
        from collector.agent.dump import offer  # noqa: PLC0415 - most hosts have no dumpers

        if offer(context, crash, partial(_attempt, context, crash), partial(_go_on, context)):
            return
    _go_on(context, crash)


def _go_on(context: Context, crash: Crash) -> None:
    """From what is decided to the writer's queue."""
    if crash.decided.admission.capture is Capture.NONE:
        _ignore(context, crash)
        return
    if not crash.is_placed:
        crash.release = release_or_hold(context, crash)
    open_held(context, crash)
    ask_systemd(context, crash)
    read_logs(context, crash, crash.decided.decision.action.logs)
    write(context, crash)


def _attempt(context: Context, crash: Crash, work: Callable[[], None]) -> None:
    """Whatever comes of it, the process is not held for ever."""
    gathered = crash.gathered
    try:
        work()
    except Exception as error:
        gathered.close()
        dying = gathered.dying
        texts = {"status": dying.text.status, "cgroup": dying.text.cgroup}
        _fail(context, gathered.handoff, dying.key, texts, crash, error)
    except BaseException:
        gathered.close()
        raise


def _fail(
    context: Context,
    handoff: HandOff,
    key: ProcessKey | None,
    texts: Mapping[str, bytes],
    crash: Crash | None,
    error: Exception,
) -> None:
    """Whatever it is, what BPF saw of the death goes on record; without BPF, what is known here."""
    why, usual = in_words(error)
    context.metrics.errors.labels("handoff").inc()
    log.error("process %d: %s", handoff.pid, why, exc_info=None if usual else error)
    if crash is not None and crash.is_open:
        give_up(context, crash, why)
        return
    if crash is not None and context.registry.give_back(crash, why, blind=context.blind):
        complete(context, crash)
    if context.blind:
        context.record(partial(record_untold, context, handoff, key, dict(texts), why))


def _join(context: Context, gathered: Gathered) -> Crash:
    """The death that a process belongs to."""
    if gathered.pin is not None:
        gathered.open.callback(
            context.pins.release, context.pins.enter(gathered.size, gathered.levels)
        )
        context.native.entered(gathered.size, gathered.levels)
    key = gathered.dying.key
    crash = context.registry.hold(key)
    if crash is None:
        raise HoldError("its death is on record already")
    crash.gathered = gathered
    context.native.joined(key)
    return crash


def _ignore(context: Context, crash: Crash) -> None:
    """Policy wants no record of it: it is counted."""
    crash.let_go()
    count(context, crash.decided.facts.cause, crash.decided.facts.signal, Outcome.IGNORED)
    context.registry.settle(crash, blind=context.blind)
    recorded(context, crash)
