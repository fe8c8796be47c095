"""The project's exceptions.

A message says what failed, on what, why, and what to do about it. The command line turns
each into one line and the exit status of its class; nothing else decides an exit status.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self


class CorewardError(Exception):
    """Anything that went wrong and that the user can be told in one line."""

    exit_status = 1
    advice: str | None = None  # what to do next; for people, who see it behind the message

    def advised(self, advice: str | None) -> Self:
        """This error, with what to do next."""
        self.advice = advice
        return self

    def told(self) -> str:
        """The whole line for people."""
        return f"{self}; {self.advice}" if self.advice else str(self)


class UsageError(CorewardError):
    """The arguments do not make sense together."""

    exit_status = 2


class PolicyError(CorewardError):
    """A configuration file is wrong; names the file, the line (1-based) and the key."""

    exit_status = 2

    def __init__(self, file: Path | str, line: int | None, key: str | None, problem: str) -> None:
        where = f"{file}:{line}" if line else str(file)
        super().__init__(f"{where}: {key}: {problem}" if key else f"{where}: {problem}")
        self.file, self.line, self.key, self.problem = str(file), line, key, problem


class ProbeError(CorewardError):
    """The BPF programs cannot be built, loaded, attached or read."""


class HoldError(CorewardError):
    """The kernel's hand-off cannot be set up, or a peer is not what it claims to be."""


class TakeoverRefused(HoldError):
    """Another crash handler is configured and `hold.takeover` does not allow replacing it."""


class CaptureError(CorewardError):
    """Threads or memory of a process cannot be captured."""


class CoreFormatError(CorewardError):
    """A file is not an ELF core, or is damaged."""


class BundleError(CorewardError):
    """A file is no bundle of a death, or a damaged one, or not what it says."""


class StoreError(CorewardError):
    """The store cannot be read or written."""


class StoreOfOthers(StoreError):
    """It is another user's, mostly root's."""


class NotFound(StoreError):
    """No record has this id."""


class Ambiguous(StoreError):
    """More than one record begins with this prefix."""


class ProcessError(CorewardError):
    """A live process cannot be looked at, or not in this way."""


class ProcessGone(ProcessError):
    """There is no such process, or it has ended meanwhile."""


class Stalled(ProcessError):
    """A read of the memory of process `pid` neither ends nor fails (see linux/stall)."""

    def __init__(self, pid: int) -> None:
        super().__init__(
            f"process {pid} keeps its readers waiting: its memory is behind userfaultfd(2) or a "
            "file system that does not answer, or its mappings are locked"
        )
        self.pid = pid


class NotPermitted(ProcessError):
    """The kernel does not let this user look into that process."""


class Unreadable(ProcessError):
    """Memory of a live process that is not mapped, or not readable; `address` is the first byte."""

    def __init__(self, address: int, message: str) -> None:
        super().__init__(message)
        self.address = address


def in_words(error: Exception) -> tuple[str, bool]:
    """What a record says of an error, and whether it is an expected one, and no fault of ours."""
    usual = isinstance(error, CorewardError | OSError)
    return str(error) if usual else f"the agent failed: {error!r}", usual
