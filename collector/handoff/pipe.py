"""The pipe hand-off, `core_pattern = |/path/coreward-pipe RUNDIR PATIENCE ...` (core(5), every
kernel).

The kernel starts the helper (native/pipe_helper.c) for each crash. The helper tells who is dying,
and native/accept_pipe.c takes its end of the pipe. From then on our descriptor alone holds the
process. The helper leaves notes of deaths for which no agent answered in time; `notes` fetches
them.

core_pipe_limit must not be 0, or the kernel does not wait; beyond that many crashes at a time it
skips the dump.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import mmap
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from collector.errors import HoldError
from collector.handoff.handoff import HandOff
from collector.handoff.listener import SocketListener
from collector.handoff.trust import check_folders
from collector.native.build import NAME

log = logging.getLogger(__name__)

# %P pid and %I tid in the initial pid namespace, %s signal, %u %g real ids, %d dump mode,
# %t seconds since the epoch, %F pidfd (>= 6.16; earlier kernels leave it out)
FIELDS = "%P %I %s %u %g %d %t %F"
PATIENCE_S = 0.25  # of a helper, with an agent that does not answer
PIPE_LIMIT = 512  # crashes that the kernel hands over at a time
SOCKET = "pipe.sock"  # in the run directory
_HEARD = "pipe.heard"  # beside it: how many helpers were heard, for those that wait
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
SHORT = Path("/run")  # for links to what a core_pattern cannot hold
_PATTERN_MAX = 127  # bytes; CORENAME_MAX_SIZE less its NUL
DIGITS = 18  # of a number in a line, at most
_NUMBER = re.compile(rb"[0-9]{1,%d}" % DIGITS)


class PipeNote(NamedTuple):
    """A death that nobody held, as the helper noted it. Ids are those of the initial namespaces."""

    pid: int
    tid: int
    signal: int
    uid: int
    gid: int
    dump_mode: int  # suid_dumpable of proc(5): 1 normal, 2 root only
    time_s: int  # since the epoch
    pidfd: int | None  # the helper's own descriptor; of no use in a note
    start_ticks: int | None  # field 22 of /proc/PID/stat


class SpooledNotes(NamedTuple):
    notes: list[PipeNote]
    lost: int  # deaths that are only counted: the spool was full, or a line was damaged


def parse_line(line: bytes) -> PipeNote:
    """A line of the helper, with or without the start time. Raises HoldError if it is not one."""
    words = line.rstrip(b"\n").split(b" ")
    if len(words) not in (8, 9) or line.count(b"\n") > 1:
        raise HoldError(f"not a line of the pipe helper: {line[:80]!r}")
    values: list[int | None] = []
    for index, word in enumerate(words):
        if word == b"-" and index >= 7:
            values.append(None)
        elif _NUMBER.fullmatch(word):
            values.append(int(word))
        else:
            raise HoldError(f"not a line of the pipe helper: {line[:80]!r}")
    pid, tid, signal, uid, gid, mode, time_s = (value or 0 for value in values[:7])
    return PipeNote(
        pid, tid, signal, uid, gid, mode, time_s, values[7], values[8] if len(values) > 8 else None
    )


class HelperGone(HoldError):
    """A helper had given up waiting before it was answered; it leaves a note."""


class PipeHandOff(HandOff):
    """The kernel writes its core in any case, and waits while the pipe is full or held open."""

    backend = "pipe"

    def __init__(
        self,
        holds: int,
        pid: int,
        pidfd: int,
        accepted_ns: int,
        streams: bool,
        unwatch: Callable[[], bool],
        who: PipeNote,
    ) -> None:
        super().__init__(holds, pid, pidfd, accepted_ns, streams, unwatch)
        self.signal = who.signal
        self.identity = who


class PipeBackend(SocketListener):
    """The listening end. `pattern` and `pipe_limit` are what the kernel has to be set to."""

    backend = "pipe"
    pipe_limit: int | None = PIPE_LIMIT

    def __init__(
        self,
        run_dir: Path,
        helper: Path,
        patience_s: float = PATIENCE_S,
        kept: int | None = None,
    ) -> None:
        """Listen in `run_dir`, an existing directory that others cannot enter.

        patience_s: so long helpers wait for us before they let their process go. kept: see
        SocketListener.
        Raises HoldError if the helper is not there, others than root may write or replace it (the
        kernel runs it as root), or a path that no core_pattern can hold cannot be linked to from
        `SHORT`.
        """
        self.run_dir = run_dir.resolve()
        self.helper = helper.resolve()
        self.helper_id = _trusted(self.helper)  # device and inode
        self._links: Path | None = None
        fields = f"p{patience_s * 1000:.0f} {FIELDS}"
        self.pattern = f"|{self.helper} {self.run_dir} {fields}"
        if not _fits(self.pattern, fields):
            self._links = _link(self.helper, self.run_dir)
            self.pattern = f"|{self._links / NAME} {self._links / 'run'} {fields}"
        self.late = 0  # helpers that had given up before we answered; they leave a note
        try:
            # how many helpers were heard, which those that wait see; it stays after `close`
            self.heard = _shared_number(self.run_dir / _HEARD)
            # through the link: a socket's path has 107 bytes
            name = str((self._links / "run" if self._links else run_dir) / SOCKET)
            super().__init__(self.run_dir / SOCKET, name, kept)
        except OSError as error:
            raise HoldError(f"{self.run_dir / SOCKET}: cannot listen: {error.strerror}") from error

    def refuse(self, why: HoldError) -> None:
        """As its like; a helper that had given up waiting is counted in `late`."""
        if isinstance(why, HelperGone):
            self.late += 1
        else:
            super().refuse(why)

    def notes(self) -> SpooledNotes:
        """Read and delete what helpers noted while no agent answered, oldest first.

        A death may be noted twice, and may be known from elsewhere: compare pid and time.
        """
        notes, lost = [], len(_take(self.run_dir / "notes.lost"))
        for line in _take(self.run_dir / "notes").splitlines(keepends=True):
            try:
                notes.append(parse_line(line))
            except HoldError as error:
                log.warning("%s", error)
                lost += 1
        return SpooledNotes(notes, lost)

    def leave(self) -> None:
        """As its like; the links stay, too."""
        super().leave()
        self._links = None

    def close(self) -> None:
        """Stop listening; helpers that were not accepted yet leave a note at once."""
        super().close()
        links, self._links = self._links, None
        if links is not None:
            shutil.rmtree(links, ignore_errors=True)


def remove_unused(run_dir: Path) -> None:
    """Remove a run directory of which nobody needs anything: neither saved settings nor notes."""
    with contextlib.suppress(OSError):
        if {entry.name for entry in run_dir.iterdir()} <= {_HEARD}:
            (run_dir / _HEARD).unlink(missing_ok=True)
            run_dir.rmdir()


def _shared_number(path: Path) -> ctypes.c_uint64 | None:
    """A number that is the content of a new file; None where the disk has no room for it.

    Raises OSError.
    """
    path.unlink(missing_ok=True)  # an earlier agent's takers may still have it
    fd = os.open(path, _CREATE, 0o600)
    try:
        size = ctypes.sizeof(ctypes.c_uint64)
        with contextlib.suppress(OSError):  # helpers have less patience, no more
            os.posix_fallocate(fd, 0, size)  # or a store could end us: SIGBUS
            return ctypes.c_uint64.from_buffer(mmap.mmap(fd, size))
        return None
    finally:
        os.close(fd)


def _fits(pattern: str, fields: str) -> bool:
    """Whether the kernel takes it whole: it splits at blanks, expands % and cuts what is longer."""
    paths = pattern.removesuffix(fields)[1:-1]
    return len(pattern.encode()) <= _PATTERN_MAX and (
        paths.count(" ") == 1 and not any(c in paths for c in "%\t\n")
    )


def _link(helper: Path, run_dir: Path) -> Path:
    """A directory with short links to both; an agent of the same `run_dir` takes the same one."""
    directory = SHORT / f"coreward-{hashlib.blake2b(bytes(run_dir), digest_size=4).hexdigest()}"
    try:
        if directory.is_symlink() or (directory.exists() and directory.stat().st_uid != 0):
            raise HoldError(f"{directory}: not made by root")
        directory.mkdir(mode=0o700, exist_ok=True)
        for name, target in ((NAME, helper), ("run", run_dir)):
            (directory / name).unlink(missing_ok=True)
            (directory / name).symlink_to(target)
    except OSError as error:
        raise HoldError(
            f"{directory}: {error.strerror}: no short way to {helper} and {run_dir}, "
            "which are too long for a core_pattern, or hold a blank or %"
        ) from error
    return directory


def _trusted(helper: Path) -> tuple[int, int]:
    """Device and inode of the helper.

    Raises HoldError if others than root may write or replace it: the kernel runs it as root.
    """
    try:
        about = helper.stat()
    except OSError as error:
        raise HoldError(f"{helper}: {error.strerror}; build it with `make setup`") from error
    if about.st_uid != 0 or about.st_mode & 0o022 or not about.st_mode & 0o100:
        raise HoldError(f"{helper}: the kernel runs it as root: must be root's, 0755 at most")
    if os.statvfs(helper).f_flag & os.ST_NOEXEC:
        raise HoldError(f"{helper}: is on a file system that is mounted noexec")
    check_folders(helper)
    return about.st_dev, about.st_ino


def _take(path: Path) -> bytes:
    """The contents of a spool file, which is deleted first: a helper that is writing notices."""
    try:
        with path.open("rb") as file:
            path.unlink()
            return file.read()
    except FileNotFoundError:
        return b""
