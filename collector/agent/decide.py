"""decide: what policy and the limits want of a process that was handed over."""

from __future__ import annotations

from collections.abc import Iterator

from collector.agent.context import Context
from collector.agent.crash import Crash, Decided
from collector.agent.crowd import REASON, is_crowded
from collector.agent.gather import Gathered
from collector.agent.owner import name_of, user_of
from collector.elfcore.types import Prot
from collector.model import Capture, Cause, Release
from collector.policy.facts import exe_of, facts_from
from collector.policy.limit import Admission
from collector.policy.match import decide as match
from collector.policy.site import Code, site_of
from collector.policy.types import Action, Facts
from collector.probe.iterators import decode_mappings

NO_CORE_WANTED = "the process's RLIMIT_CORE is 0"
_MOST_MAPPINGS = 256 << 10  # bytes of their list; one that is longer is not decoded here


def decide(context: Context, crash: Crash) -> Decided:
    """Match it against policy, and count it against the limits."""
    dying, seen = crash.gathered.dying, crash.seen
    facts = facts_from(
        # the kernel hands over what a signal kills, whether BPF has seen it or not
        Cause.SIGNAL if seen.who is None else seen.cause,
        seen.signal or crash.gathered.handoff.signal,
        status=dying.text.status,
        groups=dying.text.cgroup,
        exe=None if dying.exe_fd is None else exe_of(f"/proc/self/fd/{dying.exe_fd}"),
    )
    decision = match(context.policy.policy, facts)
    admission = _admit(context, crash, decision.action, facts)
    if admission.reason == REASON:
        context.metrics.crowded.inc()
    elif admission.reason:
        context.metrics.limited.labels(admission.capture.value).inc()
    return Decided(
        facts=facts,
        decision=decision,
        admission=admission,
        # one that a limit reduced to a record was explained the first times
        explain=not crash.gathered.spared
        and (admission.capture is not Capture.RECORD or admission.reason in (None, NO_CORE_WANTED)),
    )


def _admit(context: Context, crash: Crash, action: Action, facts: Facts) -> Admission:
    """How much may be captured of it, by its own limit and by policy's."""
    if action.capture is Capture.NONE:
        return Admission(capture=Capture.NONE, reason=None)
    if action.honour_rlimit and crash.gathered.dying.core_limit == 0:
        return Admission(capture=Capture.RECORD, reason=NO_CORE_WANTED)
    if action.capture is not Capture.RECORD and _has_no_turn(context, crash.gathered, action):
        return Admission(capture=Capture.RECORD, reason=REASON)  # no limit is charged with it
    fatal = crash.seen.fatal
    site = site_of(fatal, _code(crash.gathered)) if fatal else None
    owner = crash.gathered.owner
    user = user_of(owner)
    uid = crash.gathered.dying.uid if user is None else user
    return context.limiter.admit(action, facts.exe, site, uid=uid, owner=name_of(owner, facts))


def _code(gathered: Gathered) -> Iterator[Code]:
    """The files that it executed, decoded only if somebody asks."""
    raw = gathered.mappings
    if raw is not None and len(raw) <= _MOST_MAPPINGS:
        for one in decode_mappings(raw, None):
            if one.prot & Prot.X and one.inode:
                yield one.start, one.end, one.offset


def _has_no_turn(context: Context, gathered: Gathered, action: Action) -> bool:
    """Whether it was released without its memory, or would only wait for the cores of others."""
    if gathered.spared:
        return True
    at_once = gathered.pin is None and action.release is Release.INSTANT
    return at_once and is_crowded(context, gathered.owner)
