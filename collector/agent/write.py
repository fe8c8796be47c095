"""write: a process of its own writes the core. The dead one is gone, or waits for that only."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from functools import partial

from collector import siginfo
from collector.agent.context import Context
from collector.agent.copy import (
    Answers,
    copy_at_once,
    copy_in_time,
    let_go,
    order_for,
    size_of,
    wait_for_copy,
)
from collector.agent.crash import Crash
from collector.agent.explain import Files, explain
from collector.agent.export import end, end_of_process
from collector.agent.facts import (
    ByOther,
    Counted,
    DyingThread,
    Held,
    Kept,
    NotKept,
    Signal,
    SignalInfo,
    SignalSender,
)
from collector.agent.heap import read_heap
from collector.agent.hold import LATE_S
from collector.capture.job import CopyOrder, Explainable, Failed, Job, Told, Written
from collector.capture.parts import Copy
from collector.capture.run import run_without_memory, run_writer
from collector.errors import CorewardError, in_words
from collector.export.counts import EXEMPLAR
from collector.model import Capture, Cause, Outcome, Release, Sender
from collector.signals import signal_name

log = logging.getLogger(__name__)

_STOPPED = Failed("the agent was stopped before")
_FULL = Failed("too many captures were waiting already")


def write(context: Context, crash: Crash) -> None:
    """Have the core written, and the death explained; never waits."""
    crash.begin("core")
    held = crash.release.mode is not Release.INSTANT
    if not held:
        _note_release(context, crash, crash.gathered.handoff.release())
    if not crash.decided.explain and crash.decided.admission.capture is Capture.RECORD:
        _settle(context, crash, Written(capture=Capture.RECORD))
    elif crash.release.mode is Release.AFTER_COPY and context.lanes.copies.submit(
        partial(_copy_or_let_go, context, crash),
        dropped=partial(_settle, context, crash, _STOPPED),
        owner=crash.gathered.owner,
    ):
        pass
    else:
        _queue(context, crash, partial(_run, context, crash), first=held)
    context.metrics.queued.set(context.lanes.captures.waiting)


def write_copied(context: Context, crash: Crash, copied: Copy | str) -> None:
    """Have the core written of one that has ended, and whose memory is ours; str: why it is not."""
    crash.begin("core")
    _note_release(context, crash, crash.gathered.handoff.release())
    if isinstance(copied, Copy):
        _queue(context, crash, partial(_run, context, crash, copied=copied))
        return
    ask = partial(_make_room, context, crash)
    _queue(context, crash, lambda: run_without_memory(_job(context, crash), copied, ask))


def _copy_or_let_go(context: Context, crash: Crash) -> None:
    """No process is held for a copy that cannot even be begun: on a full disk, for example."""
    try:
        _copy(context, crash)
    except Exception as error:
        _settle(context, crash, _failed(crash, error))


def _failed(crash: Crash, error: Exception) -> Failed:
    """What is said of a core that could not be begun, because the disk is full or we are wrong."""
    why, usual = in_words(error)
    log.error("record %s: %s", crash.record.id, error, exc_info=None if usual else error)
    return Failed(why)


def _copy(context: Context, crash: Crash) -> None:
    """Let a process go when its memory is copied; its core is written in its turn."""
    status = crash.gathered.dying.text.status
    with context.copies.room(size_of(status), context.policy.policy.release.copy) as room:
        order = order_for(crash, room, context.policy.policy.release.shared)
        copy = copy_in_time if crash.gathered.others else copy_at_once
        try:
            copied = copy(crash, order, most_read(context, crash))
        except (CorewardError, OSError) as error:
            why = str(error)
            _note_release(context, crash, crash.gathered.handoff.release())
            ask = partial(_make_room, context, crash)
            _queue(context, crash, lambda: run_without_memory(_job(context, crash), why, ask))
            return
        if copied is not None:
            held_ms = crash.gathered.handoff.release() if crash.gathered.others else let_go(crash)
            _note_release(context, crash, held_ms)
            _queue(context, crash, partial(_run, context, crash, copied=copied))
            return
        answers = _run(context, crash, order)
        first, held_ms = wait_for_copy(crash, answers, order.seconds)
    _note_release(context, crash, held_ms)
    if isinstance(first, Failed | Written):
        _abandon(context, crash, answers, first)
        return
    _queue(context, crash, lambda: answers, partial(_abandon, context, crash, answers))


def _queue(
    context: Context,
    crash: Crash,
    begin: Callable[[], Answers],
    given_up: Callable[[Failed], None] | None = None,
    *,
    first: bool = False,
) -> None:
    """Have a core written in its turn. begin: its writer. first: the process waits for it."""
    given_up = given_up or partial(_settle, context, crash)
    if not context.lanes.captures.submit(
        partial(_write, context, crash, begin),
        first=first,
        dropped=partial(given_up, _STOPPED),
        owner=crash.gathered.owner,
        size=crash.gathered.kept_bytes,
    ):
        context.metrics.queue_full.inc()
        given_up(_FULL)


def most_read(context: Context, crash: Crash) -> int | None:
    """Bytes of its memory that policy lets be read; None: no limit."""
    action = crash.decided.decision.action
    limits = [action.memory.max, context.policy.policy.capture.max_read]
    if action.honour_rlimit:
        limits.append(crash.gathered.dying.core_limit)
    return min((limit for limit in limits if limit is not None), default=None)


def _abandon(context: Context, crash: Crash, answers: Answers, answer: Written | Failed) -> None:
    answers.close()
    _settle(context, crash, answer)


def _write(context: Context, crash: Crash, begin: Callable[[], Answers]) -> None:
    """Run a writer for one process, or one that was begun; the last use of its memory."""
    context.metrics.queued.set(context.lanes.captures.waiting)
    context.native.expect(context.lanes.captures.each_s)
    result: Written | Failed = Failed("the writer said nothing")
    try:
        if crash.record.held_ms is None:  # it waits, and it is its turn
            crash.gathered.handoff.keep(context.policy.policy.capture.max_time + LATE_S)
        with contextlib.closing(begin()) as answers:
            for answer in answers:
                if isinstance(answer, Explainable):
                    _explain(context, crash, answer)
                elif isinstance(answer, Written | Failed):
                    result = answer
    except Exception as error:  # its memory must be let go of all the same
        result = _failed(crash, error)
    _settle(context, crash, result)


def _run(
    context: Context, crash: Crash, copy: CopyOrder | None = None, copied: Copy | None = None
) -> Answers:
    return run_writer(_job(context, crash, copy, copied), partial(_make_room, context, crash))


def _make_room(context: Context, crash: Crash, written: int, free: int) -> bool:
    reserve = context.policy.policy.store.min_free
    return context.room.make(crash.record, written, free, reserve)


def _job(
    context: Context, crash: Crash, copy: CopyOrder | None = None, copied: Copy | None = None
) -> Job:
    """Everything of the process that is gone after its release, and what to do with it."""
    gathered, decided = crash.gathered, crash.decided
    action = decided.decision.action
    return Job(
        record_id=crash.record.id,
        folder=str(context.store.folder(crash.record.id)),
        evidence=crash.evidence,
        patches=gathered.patches,
        mem_fd=gathered.dying.mem_fd,
        pagemap_fd=gathered.dying.pagemap_fd,
        shared_fds=gathered.shared_fds,
        root_fd=gathered.dying.root_fd,
        capture=decided.admission.capture,
        memory=action.memory,
        compress=action.compress,
        max_bytes=gathered.dying.core_limit if action.honour_rlimit else None,
        max_read=context.policy.policy.capture.max_read,
        max_time=context.policy.policy.capture.max_time,
        min_free=context.policy.policy.store.min_free,
        writers=context.lanes.writers,
        explain=decided.explain,
        urgent=crash.release.mode is not Release.INSTANT and copied is None,
        copy=copy,
        copied=copied,
        attributes=action.attributes,
        redact=action.redact,
        in_haste=gathered.in_haste,
    )


def _explain(context: Context, crash: Crash, small: Explainable) -> None:
    """The small core is there; its explanation can go on beside the large one."""
    crash.hide(small.secrets)  # the rest of the core may fail, or hang
    crash.learn(Counted(threads=small.threads, thread_name=small.thread_name))
    if small.told is not None and crash.seen.fatal is None:
        _learn_told(crash, small.told)
    try:
        core, files = _kept_open(crash, small)
    except OSError as error:  # no descriptors left: the core is worth having all the same
        crash.lose("frames", f"its files cannot be kept open: {error.strerror}")
        return
    explain(context, crash, core, files, owner=crash.gathered.owner)


def _kept_open(crash: Crash, small: Explainable) -> tuple[int, Files]:
    """Descriptors of the small core, and of the process's files, which stay within reach: beneath
    its root, in its mount namespace. OSError."""
    dying, code = crash.gathered.dying, crash.gathered.code_fds
    files = Files.duplicate(dying.root_fd, dying.exe_fd, dying.mount_fd, code=code)
    try:
        return os.dup(small.core), files
    except OSError:
        files.close()
        raise


def _settle(context: Context, crash: Crash, answer: Written | Failed) -> None:
    """What became of the core; the process and its memory are let go of."""
    handoff = crash.gathered.handoff
    context.room.done(crash.record)
    if handoff.late is not None:
        crash.lose("memory", handoff.late)
    if crash.seen.is_oom and isinstance(answer, Written) and answer.name is not None:
        read_heap(context, crash, context.store.place(crash.record) / answer.name)
    crash.let_go()
    if crash.record.held_ms is None:
        _note_release(context, crash, handoff.release())
    if isinstance(answer, Failed):
        give_up(context, crash, answer.why)
    else:
        _note_core(context, crash, answer, time.monotonic() - handoff.accepted_ns / 1e9)
        _end(context, crash)


def give_up(context: Context, crash: Crash, why: str) -> None:
    """There is no core, and will be none."""
    context.metrics.errors.labels("write").inc()
    if crash.was_handled:  # it has a core, elsewhere: what is missing is its explanation
        crash.learn(NotKept(capture=Capture.RECORD, outcome=Outcome.HANDLED))
        crash.lose("frames", why)
    else:
        crash.learn(NotKept(capture=Capture.RECORD, outcome=Outcome.FAILED))
        crash.lose("core", why)
    _end(context, crash)


def _end(context: Context, crash: Crash) -> None:
    """The hand-off's work is done; only the end of the process may still be seen."""
    complete = context.registry.settle(crash, blind=context.blind)
    if crash.lacks("core", "exit" if complete else "core"):  # else it is closed now, and stored
        crash.keep(context.store)
    end(context, crash, "core")
    if complete:
        end_of_process(context, crash)


def _note_release(context: Context, crash: Crash, held_ms: float) -> None:
    context.metrics.hold.labels(crash.release.mode.value).observe(
        held_ms / 1e3, {EXEMPLAR: crash.record.id}
    )
    crash.learn(Held(held_ms=round(held_ms, 3)))


def _note_core(context: Context, crash: Crash, written: Written, seconds: float) -> None:
    """seconds: since the hand-off."""
    metrics = context.metrics
    outcome = Outcome.RECORDED
    if written.name is not None:
        outcome = Outcome.TRUNCATED if written.truncated else Outcome.COMPLETE
        metrics.capture.observe(seconds, {EXEMPLAR: crash.record.id})
        if outcome is Outcome.COMPLETE:
            metrics.last_capture.set_to_current_time()
        metrics.written.inc(written.size)
        metrics.elided.inc(written.elided)
    if written.capture is not crash.decided.decision.action.capture:
        outcome = Outcome.REDUCED
    if crash.was_handled:
        outcome = Outcome.HANDLED
    crash.learn(
        Kept(
            capture=written.capture,
            outcome=outcome,
            core=written.name,
            core_size=written.size if written.name else None,
            core_memory=written.memory if written.name else None,
            capture_s=round(seconds, 3) if written.name else None,
            attributes=written.attributes,
            redacted=written.redacted,
        )
    )
    crash.hide(written.secrets)
    for part, why in written.lost.items():
        crash.lose(part, why)


def _learn_told(crash: Crash, told: Told) -> None:
    """What the kernel's notes say of a death that BPF has not seen."""
    crash.learn(Signal(ip=told.ip, sp=told.sp))
    info = siginfo.decode(told.siginfo)
    if info is not None:
        crash.learn(
            SignalInfo(
                signal=info.signal,
                signal_name=signal_name(info.signal),
                si_code=info.code,
                si_addr=info.address,
                syscall=info.syscall,
            )
        )
    record = crash.record
    nested = record.ns_pid not in (None, record.pid)
    if not nested:
        crash.learn(DyingThread(tid=told.tid))  # else its id is one of its own namespace
    if info is None or info.sender is None:
        return
    pid, uid = info.sender
    if pid == (record.ns_pid or record.pid):
        sender = Sender(pid=record.pid, uid=uid, comm=record.comm)
        crash.learn(SignalSender(sender=sender, cause=Cause.SIGNAL))
    elif nested or not pid:
        crash.learn(ByOther(cause=Cause.KILLED))
        crash.lose("sender", "its pid is one of another pid namespace")
    else:
        crash.learn(SignalSender(sender=Sender(pid=pid, uid=uid), cause=Cause.KILLED))
        crash.lose("sender", "as the signal says; the process itself could have forged it")
