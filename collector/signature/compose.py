"""The signature of a death: its kind, and the functions or the place where it happened. Pure.

Small on purpose: the agent does this for each death. What takes rules (see `stack`) was done where
the frames were made.
"""

from __future__ import annotations

from msgspec.structs import replace

from collector.model import Cause, Record, Signature, SignatureBasis
from collector.signature.category import STACK_OVERFLOW, category_of, is_elsewhere, kind_of
from collector.signature.digest import digest
from collector.signature.types import ALGORITHM, StackKey

ID_DIGITS = 12
_LONGEST = 400  # characters of a text
_BUILD_ID = 8  # digits


def from_stack(key: StackKey | None) -> Signature | None:
    """What the frames give to a signature; `signed` completes it."""
    if key is None:
        return None
    return Signature(
        fine=key.fine, frames=key.frames, cycle=key.cycle, version=ALGORITHM, rules=key.rules
    )


def signed(record: Record, like: Signature | None = None) -> Record:
    """The record with its whole signature.

    like: of a death at the same place that was unwound, for one that was not.
    """
    if record.cause is Cause.SNAPSHOT:
        return record
    begun = record.signature
    if begun is None or not begun.frames:
        begun = Signature() if like is None else _likened(like)
    if is_elsewhere(record):
        begun = replace(begun, basis=SignatureBasis.PROGRAM)
        parts: tuple[str, ...] = (_program(record),)
    elif begun.frames:
        deep = begun.cycle and category_of(record) == STACK_OVERFLOW
        parts = begun.cycle if deep else begun.frames
    else:
        begun, parts = _without_frames(record, begun)
    text = " | ".join((kind_of(record), *parts))[:_LONGEST]
    text = text.encode("utf-8", "backslashreplace").decode()  # a path may be no UTF-8
    return replace(record, signature=replace(begun, id=id_of(text), text=text, version=ALGORITHM))


def id_of(text: str) -> str:
    """The name by which a signature is asked for: the same wherever the text is the same."""
    return digest(text, ID_DIGITS // 2)


def _likened(like: Signature) -> Signature:
    return replace(like, basis=SignatureBasis.PLACE, note=None, regression=False)


def _without_frames(record: Record, begun: Signature) -> tuple[Signature, tuple[str, ...]]:
    site = record.site
    if site is not None and record.si_code is not None and record.si_code > 0:
        place = f"{_program(record)}+{site.build_id[:_BUILD_ID]}+{site.offset:#x}"
        return replace(begun, basis=SignatureBasis.PLACE), (place,)
    return replace(begun, basis=SignatureBasis.PROGRAM), (_program(record),)


def _program(record: Record) -> str:
    name = record.comm if record.exe is None else record.exe.rsplit("/", 1)[-1]
    return name.removesuffix(" (deleted)")
