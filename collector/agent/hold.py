"""pin and release, or hold: where the native part has not let a process go, for policy or room."""

from __future__ import annotations

import msgspec

from collector.agent.context import Context
from collector.agent.crash import Crash
from collector.agent.release import ROOM, Governor, ReleaseDecision
from collector.errors import HoldError
from collector.handoff.pin import Pin
from collector.model import Capture, Release
from collector.policy.limit import Admission

LATE_S = 60.0  # that whoever is to let a process go may be late, before somebody else does


def release_or_hold(context: Context, crash: Crash) -> ReleaseDecision:
    """Pin its memory and release it at once, or say why it has to wait for its core.

    Raises HoldError if it was not decided in time, and the watchdog has let it go.
    """
    gathered, decided = crash.gathered, crash.decided
    if decided.admission.capture is Capture.RECORD and not decided.explain:
        gathered.handoff.release()
        return ReleaseDecision(mode=Release.INSTANT, reason="no memory is kept")
    if gathered.pin is not None:
        return ReleaseDecision(mode=Release.INSTANT, reason=ROOM)
    if gathered.others:  # what they write after its end would be in its core
        _wait(context, crash)
        return ReleaseDecision(mode=Release.AFTER_COPY, reason=_shared(gathered.others))
    text = gathered.dying.text
    governor = Governor(context.policy.policy.release, context.pins, lender=context.lender)
    plan = gathered.open.enter_context(
        governor.admitted(
            gathered.handoff.pid,
            decided.decision.action.release,
            text.status,
            text.cgroup,
            gathered.owner,
        )
    )
    wanted = decided.decision.action.release
    if plan.mode is not wanted and wanted is Release.INSTANT and decided.admission.reason:
        return _let_go(crash, plan.reason)
    if plan.mode is Release.INSTANT:
        try:
            gathered.open.enter_context(Pin(gathered.dying.mem_fd, gathered.address))
        except HoldError as error:
            plan = ReleaseDecision(mode=Release.AFTER_COPY, reason=str(error))
        else:
            gathered.handoff.release()
            return plan
    _wait(context, crash)
    return plan


def _wait(context: Context, crash: Crash) -> None:
    """It waits for its core, or a copy: for those before it, and for a capture of its own."""
    crash.gathered.handoff.keep(2 * context.policy.policy.capture.max_time + LATE_S)


def _shared(others: int) -> str:
    if others < 0:
        return "its memory is its parent's" + (
            ", which waits for it (vfork)" if others > -2 else ""
        )
    return f"its memory is shared with {others} other processes, which go on"


def _let_go(crash: Crash, why: str) -> ReleaseDecision:
    """Release a process that would have to wait for a core which a limit has made smaller already.

    In a storm one process after the other would wait for those before it. It is on record only.
    """
    decided = crash.decided
    reason = f"{decided.admission.reason}; to wait for it was not worth while: {why}"
    admission = Admission(capture=Capture.RECORD, reason=reason)
    crash.decided = msgspec.structs.replace(decided, admission=admission, explain=False)
    crash.gathered.handoff.release()
    return ReleaseDecision(mode=Release.INSTANT, reason="no memory is kept")
