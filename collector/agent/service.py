"""The agent as a service: what its service manager hears of it, and what it keeps for the next one.

Loaded only where a service manager has started us and wants to hear of us.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from collector.agent.accept import Acceptor
from collector.agent.context import Context
from collector.agent.pulse import Pulse, Slow
from collector.handoff.backends import NoBackend
from collector.linux.service_manager import ServiceManager, status

_ACCEPT_S = 60.0  # more than any process waits for the one who has accepted it
_WRITE_MORE_S = 120.0  # beside `capture.max_time`, until a writer is given up


class Service:
    """Its methods are for the main thread, which `wake` wakes from any thread."""

    def __init__(self, manager: ServiceManager, context: Context, wake: Callable[[], None]) -> None:
        self._manager = manager
        self._context = context
        self._wake = wake
        self._pulse: Pulse | None = None
        self._shown = ""

    @property
    def timeout_ms(self) -> int:
        """In how many milliseconds `look` wants to be called again; -1: somebody will wake us."""
        return -1 if self._pulse is None else self._pulse.timeout_ms

    def ready(self, acceptor: Acceptor | None) -> None:
        """Whoever dies from now on is taken; and from now on the watchdog is fed."""
        self._manager.tell("READY=1", self._show())
        if self._manager.watchdog_s is None:
            return
        lanes = self._context.lanes
        most_s = self._context.policy.policy.capture.max_time + _WRITE_MORE_S
        slow: list[tuple[Slow, float]] = [(lanes.captures, most_s)]
        if acceptor is not None:
            slow.append((acceptor, _ACCEPT_S))
        self._pulse = Pulse(
            self._manager.watchdog_s, (lanes.handoffs, lanes.records), slow, self._feed, self._wake
        )

    def look(self) -> None:
        """To be called on each turn of the main thread."""
        if self._pulse is not None:
            self._pulse.look()

    def reloading(self) -> None:
        """The policy is being read again; `reloaded` ends that."""
        self._manager.reloading()

    def reloaded(self) -> None:
        """It is in force, or was refused: the state says so and why."""
        self._manager.tell("READY=1", self._show())

    def stopping(self) -> None:
        """What is being worked on is finished; the watchdog does not look any more."""
        self._pulse = None
        self._manager.tell("STOPPING=1", status("finishing what is being written"))

    def _feed(self) -> None:
        before, line = self._shown, self._show()
        self._manager.tell("WATCHDOG=1", *([line] if line != before else []))

    def _show(self) -> str:
        self._shown = status("; ".join(_state(self._context)))
        return self._shown


def _state(context: Context) -> Sequence[str]:
    """What people want to know first."""
    probe, backend = context.probe, context.backend
    said = [f"{probe.loader if probe else 'no'} BPF, {backend.backend} hand-off"]
    if not isinstance(backend, NoBackend) and not backend.overwrites.is_ours:
        said.append("others have kernel.core_pattern: no crash is handed over")
    if context.policy.error is not None:
        said.append(f"the old policy stays in force: {context.policy.error}")
    families = context.metrics.deaths.collect()
    deaths = sum(int(sample.value) for family in families for sample in family.samples)
    said.append(f"{deaths} deaths, {context.lanes.captures.waiting} wait for their core")
    return said
