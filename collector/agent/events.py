"""probe: what BPF has seen, joined to deaths; and where a death goes when all of it is known.

Any thread that needs the events of a death takes all that wait: the main thread when the ring has
some, a worker before it decides on a process that was handed over.
"""

from __future__ import annotations

from functools import partial

from collector.agent.context import Context
from collector.agent.crash import Crash, State
from collector.agent.export import end_of_process, recorded
from collector.agent.unheld import record_unheld
from collector.model import Event, Exit, FatalSignal, OomVictim

_AT_ONCE = 256  # events


def take_events(context: Context) -> bool:
    """Take in the events that wait, and pass on the deaths that they complete; False: none waited.

    A few at a time, so that somebody who needs one of another death can have it between.
    """
    if context.probe is None:
        return False
    taken = False
    while True:
        with context.taking_events:  # what one thread has taken, another must find noted
            some = context.probe.drain(_AT_ONCE)
            for event in some:
                _note(context, event, late=event.time_ns < context.probe.attached_ns)
        taken = taken or bool(some)
        if len(some) < _AT_ONCE:
            break
    for crash in context.registry.abandoned():
        complete(context, crash)
    return taken


def _note(context: Context, event: Event, *, late: bool) -> None:
    key = event.who.key
    if isinstance(event, FatalSignal):
        event = context.senders.complete(event)  # at once: he may be about to end
    elif isinstance(event, OomVictim) and not late:
        event = context.ooms.complete(event)  # at once: its memory is given back meanwhile
    if isinstance(event, Exit) and (
        context.native.has_in_hand(key)
        or context.armed.awaits(event, has_handoff=context.has_handoff)
    ):
        context.registry.expect(key)
    crash = context.registry.note(event, late=late)
    if crash is not None:
        complete(context, crash)


def complete(context: Context, crash: Crash) -> None:
    """All that will be known of it is known: its record is made, after those before it."""
    context.record(partial(ended, context, crash))


def ended(context: Context, crash: Crash) -> None:
    """The same at once."""
    if crash.state is State.SEEN:
        record_unheld(context, crash)
    elif crash.is_open:
        end_of_process(context, crash)
    else:
        recorded(context, crash)  # policy wants no record of it
