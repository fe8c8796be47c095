"""What a person wrote about a signature, and whether a bug that was fixed has come back. Pure."""

from __future__ import annotations

import datetime

import msgspec
from msgspec.structs import replace

from collector.model import Record
from collector.signature.facets import build_of, version_of

LONGEST = 500  # characters of a note
MOST_BUILDS = 1000  # that a note remembers
SHORTEST_BUILD_ID = 8  # digits by which a build may be named


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """fixed_in: the build-id, or version, from which on the bug is gone; None: it is not said."""

    text: str
    time: datetime.datetime  # UTC
    fixed_in: str | None = None
    builds: tuple[str, ...] = ()  # that had died of it by then


def noted(record: Record, note: Note | None) -> Record:
    """The record with what was known of its signature when it died."""
    signature = record.signature
    if signature is None or note is None:
        return record
    again = came_back(note, build_of(record), version_of(record))
    signature = replace(signature, note=note.text, regression=again)
    return replace(record, signature=signature)


def came_back(note: Note, build: str | None, version: str | None) -> bool:
    """Whether a death in this build is a regression: the build that has the fix, or one that was
    not there when it was noted. An older build that still dies is none."""
    if note.fixed_in is None:
        return False
    if version is not None and version == note.fixed_in:
        return True
    if build is None:
        return False
    named = len(note.fixed_in) >= SHORTEST_BUILD_ID and build.startswith(note.fixed_in.lower())
    return named or build not in note.builds
