"""Write, explain, export. The process is gone, or waits for its core only.

The core is written by a process of its own, explained by another; the record grows with what they
say, and is closed by whichever part is last.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from collector import siginfo
from collector.capture.job import Explainable, Failed, Job, Told, Written
from collector.capture.process import OpenProcess
from collector.capture.run import write_core
from collector.case import Case
from collector.deaths import Death
from collector.errors import CoresnapError
from collector.explain.reason import OUTERMOST, reason
from collector.explain.run import explain_core
from collector.flow.context import Context
from collector.hold.governor import ReleaseDecision
from collector.hold.handoff import HandOff
from collector.model import Capture, Cause, Outcome, Record, Release, Sender
from collector.records import CORE_BIT
from collector.signals import signal_name

log = logging.getLogger(__name__)


class Task(msgspec.Struct, kw_only=True):
    """A captured process on its way to disk, with all that must stay open until then."""

    case: Case
    death: Death
    job: Job
    dying: OpenProcess
    handoff: HandOff
    release: ReleaseDecision
    open: contextlib.ExitStack  # descriptors, the pin or the hand-off


class Files(msgspec.Struct, frozen=True, kw_only=True):
    """Descriptors through which a dead process's files are found; None: by their paths."""

    root: int | None = None
    exe: int | None = None
    mounts: int | None = None  # its mount namespace, else the mounts below its root may go

    def close(self) -> None:
        for fd in (self.root, self.exe, self.mounts):
            if fd is not None:
                os.close(fd)


class Settler:
    """Brings deaths to their end; called from every lane."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def queue(self, task: Task) -> None:
        """Hand the captured process on to a writer; never waits."""
        task.case.begin("core")
        held = task.release.mode is Release.AFTER_WRITE
        if not held:
            self._note_release(task)
        if not task.job.explain and task.job.capture is Capture.RECORD:
            self._settle(task, Written(capture=Capture.RECORD))
        elif not self._context.lanes.captures.submit(partial(self._capture, task), first=held):
            self._context.metrics.queue_full.inc()
            self._settle(task, Failed("too many captures were waiting already"))
        self._context.metrics.queued.set(self._context.lanes.captures.waiting)

    def _capture(self, task: Task) -> None:
        """Run a writer for one process; the last use of its memory."""
        self._context.metrics.queued.set(self._context.lanes.captures.waiting)
        held = task.release.mode is Release.AFTER_WRITE
        folder = self._context.store.folder(task.job.record_id)
        job = msgspec.structs.replace(task.job, folder=str(folder), urgent=held)
        self._settle(task, write_core(job, partial(self._explainable, task)))

    def _settle(self, task: Task, answer: Written | Failed) -> None:
        """What became of the core; the process and its memory are let go of."""
        was_held = task.release.mode is Release.AFTER_WRITE
        task.open.close()
        if was_held:
            self._note_release(task)
        if isinstance(answer, Failed):
            self._context.metrics.errors.labels("write").inc()
            task.case.learn(
                capture=Capture.RECORD, outcome=Outcome.FAILED, lost={"core": answer.why}
            )
        else:
            self._note_core(task, answer)
        task.case.end("core")
        if self._context.probe is None or self._context.deaths.settle(task.death):
            self.note_exit(task.case, task.death)

    def note_exit(self, case: Case, death: Death) -> None:
        """The end of a process that was held; the last fact that comes."""
        if death.exit is None:
            case.learn(lost={"core_bit": "its exit was not seen"})
        else:
            case.learn(core_bit=bool(death.exit.status & CORE_BIT))
        case.end("exit")
        self._context.recorded(death)

    def _note_release(self, task: Task) -> None:
        held_ms = task.handoff.release()
        self._context.metrics.hold.labels(task.release.mode.value).observe(held_ms / 1e3)
        task.case.learn(held_ms=round(held_ms, 3))

    def _note_core(self, task: Task, written: Written) -> None:
        wanted = task.case.record.capture_wanted
        seconds = time.monotonic() - task.handoff.accepted_ns / 1e9
        outcome = Outcome.RECORDED
        if written.name is not None:
            outcome = Outcome.TRUNCATED if written.truncated else Outcome.COMPLETE
            self._context.metrics.capture.observe(seconds)
            self._context.metrics.written.inc(written.size)
            self._context.metrics.elided.inc(written.elided)
        if written.capture is not wanted:
            outcome = Outcome.REDUCED
        task.case.learn(
            capture=written.capture,
            outcome=outcome,
            core=written.name,
            core_size=written.size if written.name else None,
            core_memory=written.memory if written.name else None,
            capture_s=round(seconds, 3) if written.name else None,
            lost=written.lost,
        )

    def _explainable(self, task: Task, small: Explainable) -> None:
        """The writer has made the small core; its explanation can go on beside the large one."""
        task.case.learn(threads=small.threads, thread_name=small.thread_name)
        if small.told is not None and task.death.fatal is None:
            task.case.learn(**_facts_told(task.case.record, small.told))
        # its files stay within reach: beneath its root, in its mount namespace
        dying = task.dying
        files = Files(
            root=os.dup(dying.root_fd),
            exe=None if dying.exe_fd is None else os.dup(dying.exe_fd),
            mounts=None if dying.mount_fd is None else os.dup(dying.mount_fd),
        )
        self.queue_explanation(task.case, Path(small.path), files)

    def queue_explanation(
        self, case: Case, core: Path, files: Files, *, cut: str | None = None
    ) -> None:
        """cut: why outer frames are not in this core, if there are any."""
        case.begin("explanation")
        lanes = self._context.lanes
        lane = lanes.relics if files.root is None else lanes.explains
        if not lane.submit(partial(self._explain, case, core, files, cut)):
            files.close()
            core.unlink()
            case.learn(lost={"frames": "too many explanations were waiting already"})
            case.end("explanation")

    def _explain(self, case: Case, core: Path, files: Files, cut: str | None) -> None:
        exe = None if files.exe is None else Path(f"/proc/self/fd/{files.exe}")
        try:
            found = explain_core(core, exe=exe, root_fd=files.root)
        finally:
            files.close()
            core.unlink(missing_ok=True)
        case.learn(
            frames=found.frames,
            abort_message=found.abort_message,
            fault_access=case.record.fault_access or found.fault_access,
            lost=found.lost,
        )
        if cut is not None and found.frames and found.frames[-1].function not in OUTERMOST:
            case.learn(lost={"outer_frames": cut})
        case.end("explanation")

    def closed(self, record: Record) -> None:
        """The last stage of every death."""
        record = msgspec.structs.replace(record, reason=reason(record))
        try:
            self._context.store.put(record)
        except (CoresnapError, OSError) as error:
            log.error("record %s can not be stored: %s", record.id, error)
        self.count(record.cause, record.signal, record.outcome)
        self._context.announce(record)

    def count(self, cause: Cause, signo: int | None, outcome: Outcome) -> None:
        """Every death is counted exactly once, here."""
        name = signal_name(signo) or "none"
        self._context.metrics.deaths.labels(cause.value, name, outcome.value).inc()


def _facts_told(record: Record, told: Told) -> dict[str, Any]:
    """What the kernel's notes say of a death that BPF has not seen."""
    facts: dict[str, Any] = {"ip": told.ip, "sp": told.sp}
    info = siginfo.decode(told.siginfo)
    if info is not None:
        facts |= {"signal": info.signal, "signal_name": signal_name(info.signal)}
        facts |= {"si_code": info.code, "si_addr": info.address, "syscall": info.syscall}
    if record.container:
        return facts  # ids in it are those of its own namespace
    facts["tid"] = told.tid
    if info is not None and info.sender is not None and info.sender[0]:
        pid, uid = info.sender
        itself = pid == record.pid
        facts["sender"] = Sender(pid=pid, uid=uid, comm=record.comm if itself else None)
        facts["cause"] = Cause.SIGNAL if itself else Cause.KILLED
    return facts
