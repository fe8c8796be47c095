"""The agent's side of writing a core: start the writer process, follow what it says.

The writer is a process of its own: what it decodes comes from a dying process and is hostile, its
imports are heavy, and it can be given a low priority without slowing the hand-off.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Generator, Iterator

import msgspec

from collector.capture.job import (
    GO,
    MAX_EXPLAIN_CORE,
    NO_ROOM,
    Copied,
    Explainable,
    Failed,
    Job,
    NeedsRoom,
    WriterAnswer,
    Written,
)
from collector.capture.space import AskForRoom
from collector.linux import children
from collector.linux.bounded import bounded_file, seal
from collector.model import Capture

WRITER_NICE = 19
_GRACE = 15.0  # seconds that a writer has to end its core when its time is over
_LAST_TIME = 30.0  # seconds for a core without memory, where one with memory was given up
_MAX_LINE = 1 << 20
_MAX_SAID = 1 << 22  # bytes of a writer's answers
_decoder = msgspec.json.Decoder(WriterAnswer)


def no_room(written: int, free: int) -> bool:
    """Nothing is removed for it."""
    return False


def run_writer(job: Job, make_room: AskForRoom = no_room) -> Generator[WriterAnswer, None, None]:
    """Run a writer for this job to its end: what it says, as soon as it does.

    make_room: called where the disk's reserve is reached.

    Copied, if that was asked for; the core itself is begun only when the next answer is asked for.
    Explainable, if the small core is there, while the rest is still written, with a descriptor of
    it that is good until the next answer is asked for; at last Written or Failed, once. Raises
    nothing for what goes wrong in the writer; if it is closed before the end, the writer ends too.
    One that does not end in time (job.max_time) is killed, and the core has threads only.
    """
    why = ""
    if children.hanging() >= children.MAX_HANGING:
        why = "too many processes hang in the kernel"
    else:
        for answer in _run(job, make_room):
            if answer is None:
                why = f"its memory could not be read within {job.max_time:g} seconds"
            else:
                yield answer
    if not why:
        return
    if job.copy is not None:  # it has gone, and was not pinned
        yield Failed(why)
        return
    yield from run_without_memory(job, why, make_room)


def run_without_memory(
    job: Job, why: str, make_room: AskForRoom = no_room
) -> Generator[WriterAnswer, None, None]:
    """As run_writer, for a process whose memory is not to be had; `why` is in the core's losses."""
    smaller = min(job.capture, Capture.THREADS, key=_BY_SIZE.index)
    job = msgspec.structs.replace(job, capture=smaller, explain=False, max_time=_LAST_TIME)
    for answer in _run(job, make_room):
        if isinstance(answer, Written):
            lost = {"memory": why, "frames": why, **answer.lost}
            yield msgspec.structs.replace(answer, lost=lost)
        else:
            yield answer or Failed(why)


_BY_SIZE = (Capture.NONE, Capture.RECORD, Capture.THREADS, Capture.STACKS, Capture.FULL)


def _run(job: Job, make_room: AskForRoom) -> Iterator[WriterAnswer | None]:
    """Run one writer. The last answer is Written, Failed, or None: it was out of time."""
    with contextlib.ExitStack() as files:
        try:
            if job.explain:
                small = bounded_file("coreward-explain", MAX_EXPLAIN_CORE)
                files.callback(os.close, small)
                job = msgspec.structs.replace(job, explain_fd=small)
            job_fd = os.memfd_create("coreward-job", os.MFD_CLOEXEC)
            files.callback(os.close, job_fd)
            with os.fdopen(os.dup(job_fd), "wb") as file:
                file.write(msgspec.msgpack.encode(job))
            os.lseek(job_fd, 0, os.SEEK_SET)
            yield from _follow(_start(job, job_fd), job, make_room)
        except OSError as error:
            yield Failed(f"the writer cannot be started: {error}")


def _follow(
    writer: subprocess.Popen[bytes], job: Job, make_room: AskForRoom
) -> Iterator[WriterAnswer | None]:
    clock = _Clock(job)
    try:
        for answer in _answers_of(writer, clock):
            if isinstance(answer, NeedsRoom):
                _tell(writer, GO if make_room(answer.written, answer.free) else NO_ROOM)
                continue
            if isinstance(answer, Explainable):
                seal(job.explain_fd)
                yield msgspec.structs.replace(answer, core=job.explain_fd)
                continue
            yield answer
            if isinstance(answer, Copied):
                _tell(writer, GO)  # it is its turn
                clock.start(job)
            elif answer is None:
                return
            else:
                children.has_ended(writer.pid, _GRACE)  # else it would be a death of its own
                return
        children.has_ended(writer.pid, _GRACE)
    finally:
        children.kill(writer)
        for pipe in (writer.stdin, writer.stdout):
            if pipe is not None:
                pipe.close()
    yield Failed(f"the writer ended with status {writer.returncode} and no answer")


def _start(job: Job, job_fd: int) -> subprocess.Popen[bytes]:
    fds = [job_fd, job.mem_fd, job.pagemap_fd, *job.shared_fds.values()]
    if job.explain:
        fds.append(job.explain_fd)
    if job.root_fd is not None:
        fds.append(job.root_fd)
    if job.copy is not None:
        fds.append(job.copy.source.pidfd)
    if job.copied is not None:
        fds.append(job.copied.fd)
    return children.start(
        [sys.executable, "-P", "-s", "-m", "collector.capture.writer", str(job_fd)],
        0 if job.urgent else WRITER_NICE,
        pass_fds=fds,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def _tell(writer: subprocess.Popen[bytes], word: bytes) -> None:
    """One that has ended meanwhile has no more to say either."""
    if writer.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            os.write(writer.stdin.fileno(), word)


class _Clock:
    """Until when a writer has to be done."""

    def __init__(self, job: Job) -> None:
        self.start(job)

    def start(self, job: Job) -> None:
        self.until = time.monotonic() + job.max_time + _GRACE


def _answers_of(writer: subprocess.Popen[bytes], clock: _Clock) -> Iterator[WriterAnswer | None]:
    """Each answer as it comes; None, at last, if its time is over.

    The end of the pipe is no end to rely on: a thread that hangs in the kernel keeps it open.
    """
    assert writer.stdout is not None
    fd = writer.stdout.fileno()
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    said = b""
    while True:
        left = clock.until - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            yield None
            return
        data = os.read(fd, _MAX_LINE)
        *lines, said = (said + data).split(b"\n")
        for line in lines:
            try:
                yield _decoder.decode(line)
            except (msgspec.MsgspecError, json.JSONDecodeError) as error:
                yield Failed(f"the writer's answer cannot be read: {error}")
        if not data or len(said) > _MAX_SAID:
            return
