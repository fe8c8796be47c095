"""Which records a reader wants. A pure value: the index narrows with it, `matches` decides."""

from __future__ import annotations

import datetime
from fnmatch import fnmatchcase

import msgspec

from collector.model import Cause, Record


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """All conditions that are given must hold. Texts are shell globs; a record without the
    field matches no glob. Times are aware; `since` is inclusive, `until` exclusive."""

    since: datetime.datetime | None = None
    until: datetime.datetime | None = None
    cause: Cause | None = None
    signal: int | None = None
    comm: str | None = None
    exe: str | None = None
    unit: str | None = None
    namespace: str | None = None  # of its pod of Kubernetes
    pod: str | None = None  # name of that
    signature: str | None = None  # its id
    closed: bool | None = None  # whether its writer has closed it: `reason` is its last word
    kept: bool | None = None  # whether somebody has marked it so; no record says that

    def matches(self, record: Record) -> bool:
        return (
            (self.since is None or record.time >= self.since)
            and (self.until is None or record.time < self.until)
            and (self.cause is None or record.cause == self.cause)
            and (self.signal is None or record.signal == self.signal)
            and glob(self.comm, record.comm)
            and glob(self.exe, record.exe)
            and glob(self.unit, record.unit)
            and glob(self.namespace, None if record.pod is None else record.pod.namespace)
            and glob(self.pod, None if record.pod is None else record.pod.name)
            and (self.signature is None or self.signature == signature_of(record))
            and (self.closed is None or self.closed == (record.reason is not None))
        )


def signature_of(record: Record) -> str | None:
    """The id of its signature."""
    return None if record.signature is None else record.signature.id


def glob(pattern: str | None, text: str | None) -> bool:
    """Whether `text` matches; everything matches no pattern, nothing missing matches one."""
    return pattern is None or (text is not None and fnmatchcase(text, pattern))


def microseconds(time: datetime.datetime) -> int:
    """An aware time as whole microseconds since 1970, exactly (floats would round)."""
    return (time - _EPOCH) // datetime.timedelta(microseconds=1)


_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
