"""From what was gathered of a held process to the image that the notes of its core describe.

Two sources: the raw records of the BPF task iterators, or the head of the kernel's own core
stream. Both give the same `ProcessImage`; what only one of them knows stays None in its fields.
"""

from __future__ import annotations

import bisect
import functools
import os
from collections.abc import Sequence

import msgspec

from collector.arch.xsave import layout_note
from collector.capture.job import Evidence
from collector.capture.process import ProcText
from collector.capture.select import DEFAULT_FILTER
from collector.elfcore.layout import parse_head
from collector.elfcore.notes import image_of
from collector.elfcore.types import Mapping, ProcessImage, Prot, PsInfo, Thread
from collector.errors import CaptureError
from collector.linux.procfs import MapsLine, field, parse_maps, parse_stat
from collector.native.cpu import xsave_layout
from collector.probe.iterators import PATHS_MAX, decode_mappings, decode_threads

_MAX_NAME = 15
_MAX_ARGS = 79


def image_of_evidence(known: Evidence) -> ProcessImage:
    """The image of a process that is held, or was, the dying thread first.

    Raises CaptureError, or CoreFormatError if the kernel's stream is damaged.
    """
    if known.threads is None:
        return _from_stream(known)
    threads = decode_threads(known.threads)
    if not threads:
        raise CaptureError(f"process {known.pid}: the task iterator found no thread")
    threads.sort(key=lambda thread: thread.tid != known.tid)
    # as the kernel does: every thread's NT_PRSTATUS names the signal that ended the process
    threads = [msgspec.structs.replace(t, signal=known.signal) for t in threads]
    mappings = decode_mappings(known.mappings or b"", known.text.maps)
    return ProcessImage(
        threads=threads,
        mappings=with_gate(mappings),
        auxv=known.text.auxv,
        siginfo=known.siginfo,
        psinfo=_psinfo(known.text, threads, dying=threads[0].tid),
        xsave_layout=_xsave_note(),
    )


def coredump_filter(text: ProcText) -> int:
    """The process's own /proc/PID/coredump_filter."""
    try:
        return int(text.coredump_filter, 16)
    except ValueError:
        return DEFAULT_FILTER


def _from_stream(known: Evidence) -> ProcessImage:
    if known.head is None:
        raise CaptureError(
            f"process {known.pid}: neither BPF nor the kernel's stream gave registers"
        )
    return image_of_head(known.head, known.text)


def image_of_head(head_of_stream: bytearray, text: ProcText) -> ProcessImage:
    """The image that the head of the kernel's own core tells, the dying thread first.

    Raises CaptureError, or CoreFormatError if it is damaged.
    """
    head = parse_head(memoryview(head_of_stream))
    if not head.notes.threads:
        raise CaptureError("the kernel's core stream has no threads")
    named = {m.start: m for m in decode_maps(text.maps or b"")}
    mappings = [
        msgspec.structs.replace(named[m.start], dump_size=m.dump_size) if m.start in named else m
        for m in head.mappings
    ]
    return image_of(head.notes, mappings)


def with_gate(mappings: Sequence[Mapping]) -> list[Mapping]:
    """Mappings with the kernel's [vsyscall] page, which no process owns but every core has."""
    if any(m.path == "[vsyscall]" for m in mappings):
        return list(mappings)
    return [*mappings, *_gate()]


@functools.cache
def _gate() -> tuple[Mapping, ...]:
    """That page, which is the same in all processes; none if the kernel was told to have none."""
    with open("/proc/self/maps", "rb") as maps:
        own = [line for line in maps if line.rstrip().endswith(b"[vsyscall]")]
    return tuple(msgspec.structs.replace(m, special=True) for m in decode_maps(b"".join(own)))


def decode_maps(text: bytes) -> list[Mapping]:
    """The mappings as /proc/PID/maps shows them; the kernel's flags are not known from it."""
    return [mapping_of(line) for line in parse_maps(text)]


def mapping_of(line: MapsLine) -> Mapping:
    """One mapping as a line of /proc/PID/maps shows it."""
    prot = Prot(0)
    for letter, bit in ((b"r", Prot.R), (b"w", Prot.W), (b"x", Prot.X)):
        if letter in line.permissions[:3]:
            prot |= bit
    return Mapping(
        start=line.start,
        end=line.end,
        prot=prot,
        shared=line.permissions[3:4] == b"s",
        offset=line.offset,
        device=line.device,
        inode=line.inode,
        path=line.path,
    )


def lost_names(mappings: Sequence[Mapping]) -> dict[str, str]:
    """What a record says of paths that were not told; empty if all are there."""
    count = sum(m.unnamed for m in mappings)
    if not count:
        return {}
    most = PATHS_MAX >> 20
    return {"mappings": f"names of {count} mappings: too long, or beyond {most} MiB of paths"}


def mapping_at(mappings: Sequence[Mapping], starts: Sequence[int], address: int) -> Mapping | None:
    """The mapping that holds an address; `starts` are the mappings' starts, sorted."""
    index = bisect.bisect_right(starts, address) - 1
    return mappings[index] if index >= 0 and address < mappings[index].end else None


def image_of_live(
    text: ProcText, threads: Sequence[Thread], mappings: Sequence[Mapping]
) -> ProcessImage:
    """The image of a process that goes on, its main thread first: debuggers show that one first.

    Its number need not be the lowest: they begin anew at pid_max.
    """
    main = _own_pid(text)
    threads = sorted(threads, key=lambda thread: thread.tid != main)
    return ProcessImage(
        threads=threads,
        mappings=with_gate(mappings),
        auxv=text.auxv,
        psinfo=_psinfo(text, threads),
        xsave_layout=_xsave_note(),
    )


def _xsave_note() -> bytes | None:
    own = xsave_layout()
    return None if own is None else layout_note(own)


def _own_pid(text: ProcText) -> int:
    """In its own pid namespace."""
    return int(_status_field(text.status, b"NStgid").split()[-1])


def _psinfo(text: ProcText, threads: Sequence[Thread], dying: int | None = None) -> PsInfo:
    """As fill_psinfo() of fs/binfmt_elf.c: ids of the leader in its own pid namespace."""
    stat = parse_stat(text.stat)
    tgid = _own_pid(text)
    leader = next((t for t in threads if t.tid == tgid), threads[0])
    return PsInfo(
        pid=tgid,
        ppid=leader.ppid,
        pgrp=leader.pgrp,
        sid=leader.sid,
        uid=int(_status_field(text.status, b"Uid").split()[0]),
        gid=int(_status_field(text.status, b"Gid").split()[0]),
        # the dying thread waits for us; in its own core it runs
        state="R" if dying == tgid else stat.state,
        nice=stat.nice,
        flag=stat.flags,
        fname=os.fsencode(stat.comm)[:_MAX_NAME],
        psargs=text.cmdline[:_MAX_ARGS].replace(b"\0", b" "),  # as the kernel has them
    )


def _status_field(status: bytes, name: bytes) -> bytes:
    value = field(status, name)
    if value is None:
        raise CaptureError(f"/proc/PID/status has no {name.decode()}")
    return value
