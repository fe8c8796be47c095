"""The agent's side of writing a core: start the writer process, follow what it says.

The writer is a process of its own: what it decodes comes from a dying process and is hostile, its
imports are heavy, and it can be given a low priority without slowing the hand-off.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator

import msgspec

from collector.capture.job import Explainable, Failed, Job, WriterAnswer, Written

WRITER_NICE = 19
_MAX_LINE = 1 << 20
_decoder = msgspec.json.Decoder(WriterAnswer)


def run_writer(job: Job) -> Generator[WriterAnswer, None, None]:
    """Run a writer for this job to its end: what it says, as soon as it does.

    Explainable, if the small core is there, while the rest is still written; at last Written or
    Failed, once. Raises nothing for what goes wrong in the writer.
    """
    job_fd = os.memfd_create("coreward-job", os.MFD_CLOEXEC)
    try:
        with _yielding(not job.urgent):
            with os.fdopen(os.dup(job_fd), "wb") as file:
                file.write(msgspec.msgpack.encode(job))
            os.lseek(job_fd, 0, os.SEEK_SET)
            writer = _start(job, job_fd)
        last: Written | Failed | None = None
        with writer:
            for answer in _answers_of(writer):
                if isinstance(answer, Explainable):
                    yield answer
                else:
                    last = answer
        yield last or Failed(f"the writer ended with status {writer.returncode} and no answer")
    except OSError as error:
        yield Failed(f"the writer cannot be started: {error}")
    finally:
        os.close(job_fd)


@contextlib.contextmanager
def _yielding(wanted: bool) -> Iterator[None]:
    """Give this thread, and the children that it starts, a low priority for a while (sched(7)).

    The threads of the released process are still exiting and its parent waits for them; packing a
    large job and starting an interpreter beside them would delay it.
    """
    own = threading.get_native_id()
    before = os.getpriority(os.PRIO_PROCESS, own)
    if wanted:
        os.setpriority(os.PRIO_PROCESS, own, WRITER_NICE)
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, own, before)


def _start(job: Job, job_fd: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-s", "-m", "collector.capture.writer", str(job_fd)],
        pass_fds=(job_fd, job.mem_fd, job.pagemap_fd, *job.shared_fds.values()),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )


def _answers_of(writer: subprocess.Popen[bytes]) -> Iterator[WriterAnswer]:
    assert writer.stdout is not None
    while line := writer.stdout.readline(_MAX_LINE):
        try:
            yield _decoder.decode(line)
        except (msgspec.MsgspecError, json.JSONDecodeError) as error:
            yield Failed(f"the writer's answer cannot be read: {error}")
