"""A death without anything that tells of people or hosts: what may be sent to strangers.

A field is in the report because it is listed here, never because the record has it: what is added
to records later stays out until somebody has thought about it. Sentences stay out as well, for they
quote what a program said. Pure.
"""

from __future__ import annotations

import datetime
import re

import msgspec

from collector import __version__
from collector.model import Access, Cause, Frame, Record

FORMAT = 1
# Files of these places come with a distribution: their paths say nothing of who uses them.
_PUBLIC = re.compile(r"/(?:usr/(?!local/|src/)|lib|lib32|lib64|bin|sbin)[A-Za-z0-9+._/-]*")
_NAME = re.compile(r"[A-Za-z0-9+._-]{1,64}")
_WITHHELD = "?"
_FRAMES = 256
_FUNCTION = 512  # characters


class Place(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One frame: enough to symbolise it where the module's debugging information is."""

    function: str | None = None
    offset: int | None = None  # of the place in the function, bytes
    line: str | None = None  # file name without folders, and line
    module: str | None = None  # path of a distribution's file, else its name
    build_id: str | None = None
    module_offset: int | None = None
    inline: bool = False
    scanned: bool = False  # found by looking through the stack: it may be wrong


class AnonymousReport(msgspec.Struct, frozen=True, kw_only=True):
    """What is left of a death."""

    format: int
    coreward: str
    day: datetime.date
    program: str
    cause: Cause
    signal: str | None
    si_code: int | None
    access: Access | None
    null: bool  # the address of the fault was in the first page
    exit_code: int | None
    threads: int | None
    signature: str | None  # its id
    frames: list[Place]


def anonymous(record: Record) -> AnonymousReport:
    """The report of a death."""
    fault = record.si_addr is not None and record.fault_access is not None
    signature = None if record.signature is None else record.signature.id
    return AnonymousReport(
        format=FORMAT,
        coreward=__version__,
        day=record.time.date(),
        program=_file(record.exe) or _WITHHELD,
        cause=record.cause,
        signal=record.signal_name,
        si_code=record.si_code,
        access=record.fault_access,
        null=fault and 0 <= (record.si_addr or 0) < 4096,
        exit_code=record.exit_code,
        threads=record.threads,
        signature=signature,
        frames=[_place(frame) for frame in (record.frames or [])[:_FRAMES]],
    )


def _place(frame: Frame) -> Place:
    line = None
    if frame.file is not None and (name := _name(frame.file)) is not None:
        line = name if frame.line is None else f"{name}:{frame.line}"
    return Place(
        function=None if frame.function is None else frame.function[:_FUNCTION],
        offset=frame.offset,
        line=line,
        module=_file(frame.module),
        build_id=frame.build_id,
        module_offset=frame.module_offset,
        inline=frame.inline,
        scanned=frame.scanned,
    )


def _file(path: str | None) -> str | None:
    """A path that any host may have, or a plain name; `?`: it has a name that may say more."""
    if path is None:
        return None
    if _PUBLIC.fullmatch(path) and "/../" not in path:
        return path
    return _name(path) or _WITHHELD


def _name(path: str) -> str | None:
    """The last part, if it is a plain name."""
    name = path.rsplit("/", 1)[-1]
    return name if _NAME.fullmatch(name) else None
