"""What BPF has seen, joined to deaths; and where a death goes when all of it is known.

Any thread that needs the events of a death takes all that wait: the main thread when the ring has
some, a worker before it decides on a process that was handed over.
"""

from __future__ import annotations

from functools import partial

from collector.agent.context import Context
from collector.agent.correlate import Death
from collector.agent.finish import Finisher
from collector.agent.unheld import Unheld
from collector.model import Event, Exit


class Events:
    """Thread-safe."""

    def __init__(self, context: Context, finisher: Finisher, unheld: Unheld) -> None:
        self._context = context
        self._finisher = finisher
        self._unheld = unheld

    def take(self) -> None:
        """Take in the events that wait, and pass on the deaths that they complete."""
        context = self._context
        if context.probe is None:
            return
        for event in context.probe.drain():
            if event.time_ns < context.probe.attached_ns:
                context.late.add(event.who.key)
            self._note(event)
        for death in context.deaths.abandoned():
            self.complete(death)

    def complete(self, death: Death) -> None:
        """All that will be known of a death is known: its record is made, after those before it."""
        self._context.record(partial(self.ended, death))

    def ended(self, death: Death) -> None:
        """The same at once."""
        if not death.held:
            self._unheld.record(death)
        elif death.case is not None:
            self._finisher.note_exit(death.case, death)
        else:
            self._context.recorded(death)  # policy wants no record of it

    def _note(self, event: Event) -> None:
        native, deaths = self._context.native, self._context.deaths
        if isinstance(event, Exit) and native.has_in_hand(event.who.key):
            deaths.hold(event.who.key)  # it was released so fast that its worker is still to come
        death = deaths.note(event)
        if death is not None:
            self.complete(death)
