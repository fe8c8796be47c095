"""pin and release, or hold: where the native part has not let a process go, for policy or room."""

from __future__ import annotations

from collector.agent.context import Context
from collector.agent.crash import Crash
from collector.agent.release import ROOM, Governor, ReleaseDecision
from collector.errors import HoldError
from collector.handoff.pin import Pin
from collector.model import Capture, Release


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
        gathered.handoff.keep()
        return ReleaseDecision(mode=Release.AFTER_COPY, reason=_shared(gathered.others))
    text = gathered.dying.text
    governor = Governor(context.policy.policy.release, context.pins)
    plan = gathered.open.enter_context(
        governor.admitted(
            gathered.handoff.pid, decided.decision.action.release, text.status, text.cgroup
        )
    )
    if plan.mode is Release.INSTANT:
        try:
            gathered.open.enter_context(Pin(gathered.dying.mem_fd, gathered.address))
        except HoldError as error:
            plan = ReleaseDecision(mode=Release.AFTER_COPY, reason=str(error))
        else:
            gathered.handoff.release()
            return plan
    gathered.handoff.keep()
    return plan


def _shared(others: int) -> str:
    if others < 0:
        return "its memory is its parent's, which waits for it (vfork)"
    return f"its memory is shared with {others} other processes, which go on"
