"""From what was gathered of a held process to the image that the notes of its core describe.

Two sources: the raw records of the BPF task iterators, or the head of the kernel's own core
stream. Both give the same `ProcessImage`; what only one of them knows stays None in its fields.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Sequence

import msgspec

from collector.arch import xsave
from collector.capture.job import Job
from collector.capture.process import ProcText
from collector.capture.select import DEFAULT_FILTER
from collector.elfcore.layout import parse_head
from collector.elfcore.notes import image_of
from collector.elfcore.types import Mapping, ProcessImage, Prot, PsInfo, Thread
from collector.errors import CaptureError
from collector.probe.iterators import decode_mappings, decode_threads

_MAX_NAME = 15
_MAX_ARGS = 79


def image_of_job(job: Job) -> ProcessImage:
    """The image of the process that a job is about, the dying thread first.

    Raises CaptureError, or CoreFormatError if the kernel's stream is damaged.
    """
    if job.threads is None:
        return _from_stream(job)
    threads = decode_threads(job.threads)
    if not threads:
        raise CaptureError(f"process {job.pid}: the task iterator found no thread")
    threads.sort(key=lambda thread: thread.tid != job.tid)
    # as the kernel does: every thread's NT_PRSTATUS names the signal that ended the process
    threads = [msgspec.structs.replace(t, signal=job.signal) for t in threads]
    mappings = decode_mappings(job.mappings or b"", job.text.maps)
    return ProcessImage(
        threads=threads,
        mappings=with_gate(mappings),
        auxv=job.text.auxv,
        siginfo=job.siginfo,
        psinfo=_psinfo(job.text, threads, dying=threads[0].tid),
        xsave_layout=xsave.xsave_layout(),
    )


def coredump_filter(text: ProcText) -> int:
    """The process's own /proc/PID/coredump_filter."""
    try:
        return int(text.coredump_filter, 16)
    except ValueError:
        return DEFAULT_FILTER


def _from_stream(job: Job) -> ProcessImage:
    if job.head is None:
        raise CaptureError(f"process {job.pid}: neither BPF nor the kernel's stream gave registers")
    head = parse_head(memoryview(job.head))
    if not head.notes.threads:
        raise CaptureError(f"process {job.pid}: the kernel's core stream has no threads")
    named = {m.start: m for m in parse_maps(job.text.maps or b"")}
    mappings = [
        msgspec.structs.replace(named[m.start], dump_size=m.dump_size) if m.start in named else m
        for m in head.mappings
    ]
    return image_of(head.notes, mappings)


def with_gate(mappings: Sequence[Mapping]) -> list[Mapping]:
    """Mappings with the kernel's [vsyscall] page, which no process owns but every core has."""
    if any(m.path == "[vsyscall]" for m in mappings):
        return list(mappings)
    with open("/proc/self/maps", "rb") as maps:
        own = [m for m in parse_maps(maps.read()) if m.path == "[vsyscall]"]
    return [*mappings, *(msgspec.structs.replace(m, special=True) for m in own)]


def parse_maps(text: bytes) -> list[Mapping]:
    """The lines of /proc/PID/maps (proc(5)); lines that are none are left out."""
    found = []
    for line in text.split(b"\n"):
        words = line.split(None, 5)
        if len(words) < 5 or b"-" not in words[0]:
            continue
        start, _, end = words[0].partition(b"-")
        major, _, minor = words[3].partition(b":")
        letters = words[1]
        prot = Prot(0)
        for letter, bit in ((b"r", Prot.R), (b"w", Prot.W), (b"x", Prot.X)):
            if letter in letters[:3]:
                prot |= bit
        path = os.fsdecode(words[5].replace(b"\\012", b"\n")) if len(words) > 5 else None
        found.append(
            Mapping(
                start=int(start, 16),
                end=int(end, 16),
                prot=prot,
                shared=letters[3:4] == b"s",
                offset=int(words[2], 16),
                device=int(major, 16) << 20 | int(minor, 16),
                inode=int(words[4]),
                path=path,
            )
        )
    return found


def mapping_at(mappings: Sequence[Mapping], starts: Sequence[int], address: int) -> Mapping | None:
    """The mapping that holds an address; `starts` are the mappings' starts, sorted."""
    index = bisect.bisect_right(starts, address) - 1
    return mappings[index] if index >= 0 and address < mappings[index].end else None


def image_of_live(
    text: ProcText, threads: Sequence[Thread], mappings: Sequence[Mapping]
) -> ProcessImage:
    """The image of a process that goes on; the thread that comes first is the one shown first."""
    return ProcessImage(
        threads=threads,
        mappings=with_gate(mappings),
        auxv=text.auxv,
        psinfo=_psinfo(text, threads),
        xsave_layout=xsave.xsave_layout(),
    )


def _psinfo(text: ProcText, threads: Sequence[Thread], dying: int | None = None) -> PsInfo:
    """As fill_psinfo() of fs/binfmt_elf.c: ids of the leader in its own pid namespace."""
    stat = text.stat
    name = stat[stat.index(b"(") + 1 : stat.rindex(b")")]
    words = stat[stat.rindex(b")") + 2 :].split()
    ids = _status_ids(text.status)
    tgid = int(_status_field(text.status, b"NStgid:").split()[-1])
    leader = next((t for t in threads if t.tid == tgid), threads[0])
    return PsInfo(
        pid=tgid,
        ppid=leader.ppid,
        pgrp=leader.pgrp,
        sid=leader.sid,
        uid=ids[0],
        gid=ids[1],
        # the dying thread waits for us; in its own core it runs
        state="R" if dying == tgid else words[0].decode("ascii", "replace"),
        nice=int(words[16]),
        flag=int(words[6]),
        fname=name[:_MAX_NAME],
        psargs=text.cmdline[:_MAX_ARGS].replace(b"\0", b" "),  # as the kernel has them
    )


def _status_ids(status: bytes) -> tuple[int, int]:
    return int(_status_field(status, b"Uid:").split()[0]), int(
        _status_field(status, b"Gid:").split()[0]
    )


def _status_field(status: bytes, name: bytes) -> bytes:
    for line in status.split(b"\n"):
        if line.startswith(name):
            return line[len(name) :]
    raise CaptureError(f"/proc/PID/status has no {name.decode()}")
