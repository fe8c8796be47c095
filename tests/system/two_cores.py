"""Two cores of one death: the kernel's own, which it streams to the hand-off, and ours, which is
gathered of the same process, at the same moment, from BPF and /proc/PID/mem.

The native part gathers as in an agent, but lets the kernel write its core as well."""

from __future__ import annotations

import os
import select
from contextlib import closing
from pathlib import Path
from typing import Literal

import msgspec

from collector.agent.gather import gather
from collector.arch.x86_64 import SP
from collector.capture.copier import make_copy
from collector.capture.job import CopyOrder, Evidence, Job, Written
from collector.capture.outline import outline
from collector.capture.parts import Source
from collector.capture.run import run_writer
from collector.elfcore.reader import CoreFile
from collector.elfcore.types import Segment, Thread
from collector.handoff.coredump_socket import SocketBackend
from collector.handoff.native import Native, Taken
from collector.handoff.pipe import PipeBackend
from collector.model import Capture, FatalSignal
from collector.policy.types import Codec, Compress, MemoryChoice
from collector.probe.probe import Probe
from tests.system.settings import KernelSettings
from tests.system.victims import PATIENCE, running

CHUNK = 1 << 20
ROOM = 1 << 30  # bytes
Copier = Literal["agent", "writer"] | None


class TwoCores(msgspec.Struct):
    """The kernel's and ours; `kernel` is the file of the whole stream."""

    kernel: Path
    ours: Path
    written: Written


def two_cores(
    probe: Probe,
    backend: SocketBackend | PipeBackend,
    settings: KernelSettings,
    folder: Path,
    victim: str,
    *arguments: str,
    capture: Capture = Capture.FULL,
    codec: Codec = Codec.NONE,
    copier: Copier = None,
) -> TwoCores:
    """Let a victim die and keep both cores of it. The settings are changed, for others to restore.

    copier: who has its memory copied first; None: the core is written from the process.

    Raises OSError if the kernel does not take the backend's core_pattern.
    """
    settings.write("core_pattern", backend.pattern)
    if backend.pipe_limit is not None:
        settings.write("core_pipe_limit", str(backend.pipe_limit))
    with running(victim, *arguments, cwd=folder) as process:
        probe.drain()
        process.go()
        assert select.select([backend.fileno()], [], [], PATIENCE)[0], "nothing was handed over"
        native = Native(*probe.iterators, stream=True)
        native.serve(backend)
        taken = native.take(PATIENCE)
        assert taken is not None and taken.pin is None
        with taken.handoff:
            return _capture_both(probe, taken, folder, capture, codec, copier)


def _capture_both(
    probe: Probe, taken: Taken, folder: Path, capture: Capture, codec: Codec, copier: Copier
) -> TwoCores:
    handoff = taken.handoff
    kernel = folder / "kernel.core"
    with closing(gather(taken)) as gathered:
        dying = gathered.dying
        fatal = next(
            e for e in probe.drain() if isinstance(e, FatalSignal) and e.who.key.pid == handoff.pid
        )
        job = Job(
            record_id="0" * 16,
            folder=str(folder),
            evidence=Evidence(
                pid=handoff.pid,
                tid=fatal.who.ns_tid,
                signal=fatal.signal,
                siginfo=fatal.siginfo,
                text=dying.text,
                threads=gathered.threads,
                mappings=gathered.mappings,
                head=None,
            ),
            patches=gathered.patches,
            mem_fd=dying.mem_fd,
            pagemap_fd=dying.pagemap_fd,
            shared_fds=gathered.shared_fds,
            root_fd=dying.root_fd,
            capture=capture,
            memory=MemoryChoice(),
            compress=Compress(codec=codec),
            max_bytes=None,
            max_read=None,
            max_time=600.0,
            min_free=0,
            explain=False,
            urgent=True,
        )
        # ours first: the kernel brings pages of mapped files in that it then finds in memory
        source = Source(dying.tid, handoff.pidfd, dying.mem_fd, dying.pagemap_fd)
        if copier == "agent":
            shared, sp = gathered.shared_fds, fatal.regs[SP]
            parts = outline(dying, gathered.mappings, shared, sp, MemoryChoice())
            assert parts is not None
            copy = make_copy(parts, source, ROOM, PATIENCE, whole=True)
            job = msgspec.structs.replace(job, copied=copy)
        elif copier == "writer":
            job = msgspec.structs.replace(job, copy=CopyOrder(ROOM, PATIENCE, source))
        *copied, answer = run_writer(job)
        assert len(copied) == (copier == "writer")
        _save_stream(handoff.stream_fd(), kernel)
    assert isinstance(answer, Written), answer
    assert answer.name is not None
    return TwoCores(kernel, folder / answer.name, answer)


def _save_stream(fd: int, path: Path) -> None:
    os.set_blocking(fd, True)
    with path.open("wb") as file:
        while data := os.read(fd, CHUNK):
            file.write(data)


def plain_thread(thread: Thread) -> Thread:
    """Without what only one source tells, and without the times, which go on meanwhile."""
    return msgspec.structs.replace(
        thread, name="", state="", extra=(), utime=0, stime=0, cutime=0, cstime=0
    )


def dumped(core: CoreFile) -> dict[int, Segment]:
    """Segments by their addresses."""
    return {p.segment.vaddr: p.segment for p in core.segments}


def differences(kernel: CoreFile, ours: CoreFile) -> list[str]:
    """Addresses where memory that the kernel's core holds is different in ours."""
    found = []
    for segment in dumped(kernel).values():
        at = segment.vaddr
        while at < segment.vaddr + segment.filesz:
            size = min(CHUNK, segment.vaddr + segment.filesz - at)
            if kernel.read(at, size) != ours.read(at, size):
                one, two = kernel.read(at, size), ours.read(at, size)
                where = next(i for i in range(size) if one[i] != two[i])
                found.append(f"{at + where:#x}")
            at += size
    return found
