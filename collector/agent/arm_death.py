"""The death of an armed process: from its pinned memory and its threads' last words to its core.

It has ended before this begins, and its parent goes on: nobody waits. But its memory is charged to
its memory cgroup. Where a successor has room beside it, it is read at leisure, as that of a crash
is. Where it might not, and when the kernel killed it for want of memory, it is copied into our own
as far as `within` goes, the stacks first, and given up: what is missing is named in the record.
"""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path

import msgspec

from collector import copies
from collector.agent.arm_copy import copy_hastily
from collector.agent.arm_decide import decide_armed, groups_of
from collector.agent.armed import Armed, is_handed_over
from collector.agent.context import Context
from collector.agent.crash import Crash
from collector.agent.events import complete
from collector.agent.export import open_held
from collector.agent.gather import Gathered
from collector.agent.release import PinTotals, ReleaseDecision, decide
from collector.agent.write import give_up, write, write_copied
from collector.capture.job import Patch
from collector.errors import ProbeError, in_words
from collector.handoff.ended import EndedProcess
from collector.linux.memory import LevelKey, read_facts
from collector.model import Capture, Cause, Release
from collector.native.contract import OWNER_DEVICE
from collector.policy.types import ArmRule
from collector.policy.units import show_duration
from collector.probe.armed import ArmedProbe, LeavingThread, PinnedMemory

log = logging.getLogger(__name__)

_EXIT_GROUP = 231  # <asm/unistd_64.h>
_NO_SYSCALL = -1  # orig_rax of a thread that faulted, or was interrupted
_IN_WORDS = {Cause.OOM: "OOM kills", Cause.EXIT: "exits", Cause.KILLED: "kills"}
_PINNED = "its memory was pinned before; room for a successor"
_LOOKS_S = (0.001, 0.01)  # between looks at who uses its memory


def died(context: Context, one: Armed, dropped: int) -> None:
    """From its end to the writer's queue. dropped: threads that could not be told.

    `one` is given up here, or with its core.
    """
    crash = _expected(context, one)
    if crash is None:
        one.close()  # it ended well, or its core is another one's
        return
    try:
        why = _not_wanted(crash, one.rule)
        if not why:
            _handle(context, crash, one, dropped)
            return
    except Exception as error:  # whatever it is, what BPF saw of the death goes on record
        why, usual = in_words(error)
        context.metrics.errors.labels("arm").inc()
        log.error("armed process %d: %s", one.key.pid, why, exc_info=not usual)
    one.close()
    if crash.is_open:
        give_up(context, crash, why)
    else:
        give_back(context, one, why)


def give_back(context: Context, one: Armed, why: str) -> None:
    """There will be no core of it: if it has died, what BPF saw goes on record."""
    crash = _expected(context, one)
    if crash is not None and context.registry.give_back(crash, why, blind=context.blind):
        complete(context, crash)


def _expected(context: Context, one: Armed) -> Crash | None:
    """Its death, if that waits for us."""
    crash = context.registry.claimed(one.key)
    exited = None if crash is None else crash.seen.exit
    if exited is None or is_handed_over(exited, has_handoff=context.has_handoff):
        return None
    return crash


def cause_of(cause: Cause) -> Cause:
    """The word of a rule's `on` for it: a signal that nobody else sent kills as well."""
    return Cause.KILLED if cause is Cause.SIGNAL else cause


def _not_wanted(crash: Crash, rule: ArmRule) -> str:
    """Why its memory is not kept; "": it is."""
    cause, who = cause_of(crash.seen.cause), crash.seen.who
    if cause not in rule.on:
        return f"arm rule {rule.name} is not for {_IN_WORDS[cause]}"
    if who is not None and copies.is_copy(who.key):
        return "it is a copy of another process"
    return ""


def _handle(context: Context, crash: Crash, one: Armed, dropped: int) -> None:
    assert context.armed_probe is not None
    threads = list(one.threads.values())
    if not threads:
        raise ProbeError("none of its threads was told as it left")
    memory = context.armed_probe.walk(one.opened.mem_fd)
    others = _others(context.armed_probe, one.opened.mem_fd)
    crash.gathered = _gathered(crash, one, threads, memory, others)
    crash.decided = decide_armed(context, crash, one)
    hurry = _hurry(context, crash, one, memory)
    crash.release = ReleaseDecision(mode=Release.INSTANT, reason=hurry or _PINNED)
    copied = copy_hastily(context, crash, one, [t.sp for t in threads]) if hurry else None
    open_held(context, crash)
    _name_losses(crash, threads, dropped)
    if copied is None:
        write(context, crash)
    else:
        write_copied(context, crash, copied)


def _gathered(
    crash: Crash, one: Armed, threads: list[LeavingThread], memory: PinnedMemory, others: int
) -> Gathered:
    ended = EndedProcess(one.key.pid)
    ended.signal = crash.seen.signal
    open_ = contextlib.ExitStack()
    open_.callback(one.close)
    uid = one.opened.uid
    return Gathered(
        handoff=ended,
        dying=one.opened,
        threads=memoryview(b"".join(thread.raw for thread in threads)),
        mappings=memory.mappings,
        head=None,
        patches=[Patch(*word) for thread in threads for word in thread.words],
        shared_fds={},
        unopened=0,
        address=0,
        others=others,
        spared=False,
        pin=one.pin,
        size=memory.private,
        open=open_,
        owner=LevelKey(OWNER_DEVICE, uid) if uid else None,
        first=_first(crash, threads),
        in_haste=f"within {show_duration(one.rule.within)} (arm rule {one.rule.name})",
        resident=memory.resident,
    )


def _others(probe: ArmedProbe, mem_fd: int) -> int:
    """Processes that share its memory and go on, not those that only looked at it."""
    for seconds in _LOOKS_S:
        if probe.users(mem_fd) <= 1:
            return 0
        time.sleep(seconds)
    return max(probe.users(mem_fd) - 1, 0)


def _first(crash: Crash, threads: list[LeavingThread]) -> int:
    """The thread that called exit(3), that ran out of memory, or that died of the signal first.

    As it knows itself.
    """
    seen = crash.seen
    if seen.cause in (Cause.EXIT, Cause.OOM):
        looked_for = _EXIT_GROUP if seen.cause is Cause.EXIT else _NO_SYSCALL
        for thread in threads:
            if thread.syscall == looked_for:
                return thread.ns_tid
    told = [thread.ns_tid for thread in threads]
    return seen.fatal.who.ns_tid if seen.fatal and seen.fatal.who.ns_tid in told else told[0]


def _hurry(context: Context, crash: Crash, one: Armed, memory: PinnedMemory) -> str:
    """Why its memory must be given up at once; "": it may stay until it is read, and is counted."""
    if crash.decided.admission.capture not in (Capture.FULL, Capture.STACKS):
        return ""
    most = f"its memory was kept for {show_duration(one.rule.within)} at most"
    if crash.seen.is_oom:
        return f"{most}: there was none left"
    gathered = crash.gathered
    facts = read_facts(
        gathered.handoff.pid,
        Path("/proc"),
        Path("/sys/fs/cgroup"),
        status=b"",
        groups=groups_of(one),
    )
    facts = msgspec.structs.replace(facts, private=memory.private)
    settings = context.policy.policy.release
    decision = ReleaseDecision(mode=Release.INSTANT, reason="")

    def allow(totals: PinTotals) -> bool:
        nonlocal decision
        decision = decide(Release.INSTANT, settings, facts, totals)
        return decision.mode is Release.INSTANT

    levels = tuple(level.key for level in facts.levels or ())
    reservation = context.pins.reserve(memory.private, levels, allow)
    if reservation is None:
        return f"{most}: {decision.reason}"
    gathered.open.callback(context.pins.release, reservation)
    return ""


def _name_losses(crash: Crash, threads: list[LeavingThread], dropped: int) -> None:
    if dropped:
        crash.lose("threads", f"{dropped} threads: too many ended at a time")
    ran = sum(thread.ran for thread in threads)
    if ran:
        crash.lose("xstate", f"{ran} threads were on a CPU, with their floating-point registers")
    if any(thread.more_words for thread in threads):
        crash.lose("robust", "words of some robust futexes are as their owners' end left them")
