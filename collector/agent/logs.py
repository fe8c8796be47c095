"""logs: the last lines of the unit whose process died, from the journal. Nobody waits for it."""

from __future__ import annotations

import datetime
from functools import partial

from collector.agent.context import Context
from collector.agent.crash import Crash
from collector.agent.export import end
from collector.agent.facts import Logged
from collector.errors import CorewardError
from collector.linux import journal

_SLACK = datetime.timedelta(seconds=1)  # between the clocks of the death and of the journal


def read_logs(context: Context, crash: Crash, most: int | None) -> None:
    """Have at most so many lines read, where there is a journal; the record waits for it."""
    unit = crash.record.unit
    if most is None or unit is None or crash.record.late or not context.has_journal:
        return
    if "/" in unit:
        crash.lose("logs", "its unit is a user's own manager's")
        return
    crash.begin("logs")
    give_up = partial(_give_up, context, crash)
    if not context.lanes.units.submit(
        partial(_read, context, crash, unit, most),
        dropped=partial(give_up, "the agent was stopped before"),
    ):
        give_up("too many units were being asked for already")


def _give_up(context: Context, crash: Crash, why: str) -> None:
    crash.lose("logs", why)
    end(context, crash, "logs")


def _read(context: Context, crash: Crash, unit: str, most: int) -> None:
    # the record of a user's process is for that user to read: not what root wrote beside it
    uid = crash.record.uid or None
    try:
        lines = journal.last_lines(unit, most, crash.record.time + _SLACK, uid=uid)
    except CorewardError as error:
        _give_up(context, crash, str(error))
        return
    crash.learn(Logged(logs=lines))
    end(context, crash, "logs")
