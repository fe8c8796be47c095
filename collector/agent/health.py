"""health: the agent's state for the interface of that name. Loaded only if policy wants it."""

from __future__ import annotations

import datetime
from pathlib import Path

from collector import __version__
from collector.agent.context import Context
from collector.handoff.backends import NoBackend
from collector.handoff.trust import check_folders
from collector.health.interface import HealthInterface
from collector.health.types import State
from collector.policy.types import HealthSettings


def open_health(context: Context, settings: HealthSettings) -> HealthInterface:
    """Serve at the socket of the policy; HoldError if that cannot be made safely."""
    assert settings.socket is not None
    path: Path = settings.socket
    check_folders(path.parent)
    started = datetime.datetime.now(datetime.UTC)

    def state() -> State:
        return _state(context, started, health.log.deaths)

    health = HealthInterface(path, settings.group, f"{int(started.timestamp()):x}", state)
    context.recorder.on_fired = health.log.fired
    return health


def _state(context: Context, started: datetime.datetime, deaths: int) -> State:
    backend, policy = context.backend, context.policy
    return State(
        agent=__version__,
        started=started,
        bpf="none" if context.probe is None else context.probe.loader,
        handoff="none" if isinstance(backend, NoBackend) else backend.backend,
        core_pattern_ours=None if isinstance(backend, NoBackend) else backend.is_in_place(),
        policy=policy.policy.source,
        policy_error=None if policy.error is None else str(policy.error),
        captures_waiting=context.lanes.captures.waiting,
        pins_open=context.pins.totals().count,
        deaths=deaths,
        store_free_bytes=context.store.free_bytes(),
        store_min_free_bytes=policy.policy.store.min_free,
        unstored=len(context.unstored),
        sinks_lost=context.sinks.lost(),
    )
