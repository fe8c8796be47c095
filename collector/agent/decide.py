"""decide: what policy and the limits want of a process that was handed over."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from msgspec.structs import replace

from collector.agent.context import Context
from collector.agent.crash import Crash, Decided
from collector.agent.crowd import REASON, is_crowded
from collector.agent.gather import Gathered
from collector.agent.owner import name_of, user_of
from collector.agent.pods import with_pod
from collector.elfcore.types import Prot
from collector.linux.statx import version_of
from collector.model import Capture, Cause, CrashSite, Release, Signature
from collector.policy.collect import Place, Stage
from collector.policy.facts import exe_of, facts_from
from collector.policy.limit import Admission
from collector.policy.match import decide as match
from collector.policy.site import Code, Site, caller_in, offset_of, site_of
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
    facts = with_pod(context, facts, waits=_waits(crash.gathered))
    decision = match(context.policy.policy, facts)
    fatal = crash.seen.fatal
    site = site_of(fatal, _code(crash.gathered)) if fatal else None
    place = crash.place = _place(crash, facts, site)
    like = context.places.signature(place)
    collect, stage = decision.action.collect, None
    if collect is not None:
        stage = context.places.stage(collect, place)
        action = replace(decision.action, capture=stage.capture)
        decision = replace(decision, action=action)
    admission = _admit(context, crash, decision.action, facts, site)
    if stage is not None and admission.capture is stage.capture:
        context.places.captured(place)
    if admission.reason == REASON:
        context.metrics.crowded.inc()
    elif admission.reason:
        context.metrics.limited.labels(admission.capture.value).inc()
    return Decided(
        facts=facts,
        decision=decision,
        admission=admission,
        stage=stage,
        like=like,
        # one that a limit, or its number, reduced to a record was explained the first times
        explain=not crash.gathered.spared
        and (
            admission.capture is not Capture.RECORD
            or (admission.reason in (None, NO_CORE_WANTED) and not _is_known(stage, like))
        ),
    )


def _waits(gathered: Gathered) -> bool:
    """Whether the process has not been released yet."""
    return gathered.pin is None and not gathered.spared


def _is_known(stage: Stage | None, like: Signature | None) -> bool:
    """Whether the policy wants no more of such deaths, and what they are is known."""
    return stage is not None and stage.why is not None and like is not None


def _place(crash: Crash, facts: Facts, site: Site | None) -> Place:
    """What tells this bug from others before anybody unwinds its stack."""
    gathered, fatal = crash.gathered, crash.seen.fatal
    version = None
    if gathered.dying.exe_fd is not None:
        with contextlib.suppress(OSError):
            version = version_of(f"/proc/self/fd/{gathered.dying.exe_fd}")
    caller = None
    if fatal is not None:
        is_abort = site is not None and not isinstance(site, CrashSite)
        site = site or offset_of(fatal, _code(gathered))
        if version is not None and site is not None and not is_abort:
            caller = caller_in(fatal, _code(gathered, version.inode))
    return Place(
        uid=_user(gathered),
        exe=facts.exe,
        version=None if version is None else (version.size, version.mtime_ns),
        signal=crash.signal or None,
        site=site,
        caller=caller,
    )


def _user(gathered: Gathered) -> int | None:
    user = user_of(gathered.owner)
    return gathered.dying.uid if user is None else user


def _admit(
    context: Context, crash: Crash, action: Action, facts: Facts, site: Site | None
) -> Admission:
    """How much may be captured of it, by its own limit and by policy's."""
    if action.capture is Capture.NONE:
        return Admission(capture=Capture.NONE, reason=None)
    if action.honour_rlimit and crash.gathered.dying.core_limit == 0:
        return Admission(capture=Capture.RECORD, reason=NO_CORE_WANTED)
    if action.capture is not Capture.RECORD and _has_no_turn(context, crash.gathered, action):
        return Admission(capture=Capture.RECORD, reason=REASON)  # no limit is charged with it
    uid, owner = _user(crash.gathered), name_of(crash.gathered.owner, facts)
    return context.limiter.admit(action, facts.exe, site, uid=uid, owner=owner)


def _code(gathered: Gathered, inode: int | None = None) -> Iterator[Code]:
    """The files that it executed, or the one with this inode; decoded only if somebody asks."""
    raw = gathered.mappings
    if raw is not None and len(raw) <= _MOST_MAPPINGS:
        for one in decode_mappings(raw, None):
            if one.prot & Prot.X and one.inode and inode in (None, one.inode):
                yield one.start, one.end, one.offset


def _has_no_turn(context: Context, gathered: Gathered, action: Action) -> bool:
    """Whether it was released without its memory, or would only wait for the cores of others."""
    if gathered.spared:
        return True
    at_once = gathered.pin is None and action.release is Release.INSTANT
    return at_once and is_crowded(context, gathered.owner)
