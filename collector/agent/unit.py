"""unit: what systemd says of a unit when it has just killed a process of it.

Which timeout it was, or the watchdog, is known to systemd alone, and only until the unit starts
anew. The question is another process's work, in a lane of its own; only the record waits for it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec

from collector.agent.context import Context
from collector.agent.crash import Crash
from collector.agent.export import end
from collector.agent.facts import KilledByUnit
from collector.errors import CorewardError
from collector.linux import systemd
from collector.model import KilledBy, Killer, UnitState

_STATE = ("Result", "ActiveState", "SubState")
_TIMEOUTS = (
    *("TimeoutStartUSec", "TimeoutStopUSec", "TimeoutAbortUSec"),
    *("RuntimeMaxUSec", "WatchdogUSec"),
)
_UNSET = ("", "0", "infinity")


def ask_systemd(context: Context, crash: Crash) -> None:
    """If systemd killed a process of a unit its record says why, and waits for that."""
    killer, unit = crash.record.killer, crash.record.unit
    if killer is None or unit is None or not _is_init(killer):
        return
    if killer.unit_state is not None or "unit_state" in killer.lost:
        return  # it was asked before
    if "/" in unit or crash.record.late:
        why = "the agent was down" if crash.record.late else "it is a user's own manager's"
        _lose(crash, killer, why)
        return
    crash.begin("unit")
    give_up = partial(_give_up, context, crash, killer)
    if not context.lanes.units.submit(
        partial(_ask, context, crash, killer, unit),
        dropped=partial(give_up, "the agent was stopped before"),
    ):
        give_up("too many units were being asked for already")


def ask_before(context: Context, crash: Crash, answered: Callable[[], None]) -> bool:
    """Ask before anything is made of the death, which is not on disk yet: then `answered` is called
    among the records, and the record has what systemd said. False: nobody is asked."""
    killer, unit = crash.record.killer, crash.record.unit
    if killer is None or unit is None or "/" in unit or crash.record.late or not _is_init(killer):
        return False
    again = partial(context.record, answered)
    return context.lanes.units.submit(
        partial(_ask_and_learn, crash, killer, unit, again), dropped=answered
    )


def _ask_and_learn(crash: Crash, killer: Killer, unit: str, again: Callable[[], None]) -> None:
    try:
        crash.learn(KilledByUnit(killer=msgspec.structs.replace(killer, unit_state=state_of(unit))))
    except CorewardError as error:
        _lose(crash, killer, str(error))
    again()


def _is_init(killer: Killer) -> bool:
    return (
        killer.by is KilledBy.PROCESS
        and (killer.pid, killer.comm) == (1, "systemd")
        and systemd.is_init()
    )


def _ask(context: Context, crash: Crash, killer: Killer, unit: str) -> None:
    try:
        state = state_of(unit)
    except CorewardError as error:
        _give_up(context, crash, killer, str(error))
        return
    crash.learn(KilledByUnit(killer=msgspec.structs.replace(killer, unit_state=state)))
    end(context, crash, "unit")


def _give_up(context: Context, crash: Crash, killer: Killer, why: str) -> None:
    _lose(crash, killer, why)
    end(context, crash, "unit")


def _lose(crash: Crash, killer: Killer, why: str) -> None:
    lost = {**killer.lost, "unit_state": why}
    crash.learn(KilledByUnit(killer=msgspec.structs.replace(killer, lost=lost)))


def state_of(unit: str) -> UnitState:
    """Blocks for `systemd.TIMEOUT_S` at most. CorewardError says why it is not known."""
    found = systemd.show(unit, _STATE + _TIMEOUTS)
    result, active, sub = (found.get(name, "") for name in _STATE)
    if not result:
        raise CorewardError(f"systemd tells no result of {unit}")
    set_ = {name: found[name] for name in _TIMEOUTS if found.get(name, "") not in _UNSET}
    return UnitState(result=result, active=active, sub=sub, timeouts=set_)
