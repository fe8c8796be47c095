"""The event core: an ELF core made from BPF's events of a death that nobody held.

Registers and up to 32 KiB of stack come from the event of the fatal signal, the mapped objects from
the event of the exit. That is enough for one backtrace of one thread; there is no other memory.
"""

from __future__ import annotations

import os

from collector.arch.x86_64 import CODE_32_BIT, NO_32_BIT_CODE, PAGE, Reg
from collector.elfcore.layout import Layout
from collector.elfcore.notes import build_notes
from collector.elfcore.sink import InPlaceWriter, WriterParams
from collector.elfcore.types import Mapping, ProcessImage, Prot, PsInfo, Segment, Thread
from collector.errors import CaptureError
from collector.model import Exit, FatalSignal, MappedObject


def write_event_core(fd: int, fatal: FatalSignal, ended: Exit) -> None:
    """Write the core of `fatal`'s thread to an empty file.

    Raises CaptureError if the events have no mapped objects or no stack: then nothing can be
    unwound.
    """
    if not ended.mapped:
        raise CaptureError(
            ended.unmapped
            or "its mappings were not told (needs the loader `core`, and Linux >= 6.16 or fentry)"
        )
    if fatal.regs[Reg.CS] == CODE_32_BIT:
        raise CaptureError(NO_32_BIT_CODE)
    if not fatal.stack:
        raise CaptureError("its stack could not be read")
    segments, data = _segments(fatal, ended.mapped)
    layout = Layout(segments, build_notes(_image(fatal, ended)))
    writer = InPlaceWriter(fd)
    writer.init(WriterParams(size=layout.size))
    writer.write(layout.header, 0)
    for placed in layout.placed:
        if placed.segment.filesz:
            writer.write(data[placed.segment.vaddr], placed.offset)
    writer.close()


def _segments(
    fatal: FatalSignal, objects: tuple[MappedObject, ...]
) -> tuple[list[Segment], dict[int, bytes]]:
    """The objects without their bytes, which are in the files, and the stack's pages."""
    found = [
        Segment(vaddr=o.start, memsz=o.end - o.start, filesz=0, flags=_prot(o)) for o in objects
    ]
    data = {page.address: page.data for page in fatal.stack}
    found += [
        Segment(vaddr=address, memsz=PAGE, filesz=len(page), flags=Prot.R | Prot.W)
        for address, page in data.items()
    ]
    return sorted(found, key=lambda segment: segment.vaddr), data


def _image(fatal: FatalSignal, ended: Exit) -> ProcessImage:
    who = fatal.who
    return ProcessImage(
        threads=[
            Thread(
                tid=who.ns_tid,
                regs=fatal.regs,
                signal=fatal.signal,
                name=fatal.thread_name or who.comm,
            )
        ],
        mappings=[
            Mapping(start=o.start, end=o.end, prot=_prot(o), offset=o.offset, inode=1, path=o.path)
            for o in ended.mapped
        ],
        siginfo=fatal.siginfo,
        psinfo=PsInfo(
            pid=who.ns_pid,
            ppid=who.ppid,
            uid=who.uid,
            gid=who.gid,
            fname=os.fsencode(who.comm)[:15],
        ),
    )


def _prot(mapped: MappedObject) -> Prot:
    return Prot.R | Prot.X if mapped.executable else Prot.R
