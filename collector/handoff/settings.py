"""The kernel's global crash settings: taken over, and always given back (core(5)).

The previous values are on disk before anything changes, so that they can be put back by whoever
comes next: this process when it stops, the service manager's stop hook after it was killed, or
`coreward doctor --restore`. What this does not do: choose the pattern; that is `open_backend`'s.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from pathlib import Path
from types import TracebackType

import msgspec

from collector.errors import HoldError, TakeoverRefused
from collector.linux import initial_mounts
from collector.linux.descriptors import Spare

log = logging.getLogger(__name__)

SYSCTL = Path("/proc/sys/kernel")
LOCK = Path("/run/coreward.lock")  # one for the host, wherever an agent's run directory is
_PATTERN, _LIMIT = "core_pattern", "core_pipe_limit"
_PATIENCE_S = 3.0
_SPARE = 3  # descriptors: a restore has one file open at a time, and others may be quicker
_KERNEL_DEFAULT = "core"  # the kernel's built-in core_pattern


class _Setting(msgspec.Struct):
    """One setting: what it was before us, and every value that we have put there since."""

    original: str
    ours: list[str]


class _Saved(msgspec.Struct):
    """`settings.json`: settings by name, in the order in which they are put back."""

    settings: dict[str, _Setting] = {}


class SettingsGuard:
    """A context manager: leaving it restores. Only one guard on the machine can have taken over."""

    def __init__(self, state_dir: Path, sysctl: Path = SYSCTL, lock: Path | None = None) -> None:
        """`settings.json` is kept in `state_dir`, which is made (0700) when first needed.

        lock: a file that no other user can open, so that none can lock it.
        """
        self.file = state_dir / "settings.json"
        self._sysctl = sysctl
        self._lock_file = lock or LOCK
        self._lock: int | None = None
        self._spare: Spare | None = None  # so that a restore can open what it needs

    def takeover(self, pattern: str, pipe_limit: int | None, allow: bool) -> None:
        """Set core_pattern, and core_pipe_limit if one is given and the present one is smaller.

        May be called again with other values. Raises TakeoverRefused if the present pattern
        belongs to another crash handler and `allow` is false, or another agent is at work;
        HoldError if the settings cannot be saved or the kernel refuses the pattern, in which case
        everything is as before.
        """
        held_before = self._lock is not None
        self.lock()
        saved = self._load()
        present = self._read(_PATTERN)
        # our own from an earlier run, even if its save file was lost
        own = present == pattern or present in self._ours(saved)
        if present[:1] in ("|", "@") and not own and not allow:
            if not held_before:
                self.unlock()
            raise TakeoverRefused(
                f"kernel.core_pattern is {present!r}: another crash handler is installed; "
                "remove it, or set `hold.takeover: true` to replace it while coreward runs"
            )
        self._note(saved, _PATTERN, present, pattern)
        limit = self._read(_LIMIT)
        if pipe_limit is not None and int(limit) < pipe_limit:
            self._note(saved, _LIMIT, limit, str(pipe_limit))
        else:
            pipe_limit = None
        self._save(saved)
        try:
            if pipe_limit is not None:
                self._write(_LIMIT, str(pipe_limit))
            self._write(_PATTERN, pattern)
        except HoldError:
            self.restore()
            raise

    def restore(self, *, unlock: bool = True) -> list[str]:
        """Put back what was before; returns what was done, a sentence each, for people.

        A setting that someone else has changed meanwhile is left alone. Does nothing the second
        time. Raises TakeoverRefused while another agent is at work, HoldError if a value cannot be
        put back; the save file stays then, so that it can be tried again. unlock: other agents may
        take over from now on.
        """
        if not self.file.exists():
            if unlock:
                self.unlock()
            return []
        self.lock()
        self._give_up_spare()
        done = []
        for name, setting in self._load().settings.items():
            present = self._read(name)
            if present not in setting.ours:
                if present != setting.original:
                    done.append(f"kernel.{name} is {present!r} by someone else's hand: left alone")
            elif present != setting.original:
                self._write(name, setting.original)
                done.append(f"kernel.{name} is {setting.original!r} again")
        self.file.unlink()
        self._sync_directory()
        if unlock:
            self.unlock()
        return done

    def is_ours(self, pattern: str) -> bool:
        """Whether a core_pattern is one that we have set."""
        return pattern in self._ours(self._load())

    def is_locked(self) -> bool:
        """Whether somebody else has the hand-off: an agent, or for a moment a doctor."""
        if self._lock is not None:
            return False
        try:
            fd = os.open(self._lock_file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def is_set(self, pattern: str) -> bool:
        """Whether it is the present core_pattern; False if nobody knows."""
        try:
            return self._read(_PATTERN) == pattern
        except HoldError:
            return False

    @staticmethod
    def _ours(saved: _Saved) -> list[str]:
        setting = saved.settings.get(_PATTERN)
        return setting.ours if setting else []

    @staticmethod
    def _note(saved: _Saved, name: str, present: str, value: str) -> None:
        """Remember the original, unless what is there now is ours: then keep the older one."""
        setting = saved.settings.get(name)
        if setting is None or present not in setting.ours:
            lost = name == _PATTERN and present == value  # ours, and nobody knows what was before
            setting = saved.settings[name] = _Setting(_KERNEL_DEFAULT if lost else present, [])
        if value not in setting.ours:
            setting.ours.append(value)

    def _read(self, name: str) -> str:
        try:
            return (self._sysctl / name).read_text().rstrip("\n")
        except OSError as error:
            raise HoldError(f"cannot read kernel.{name}: {error.strerror}") from error

    def _write(self, name: str, value: str) -> None:
        try:
            _put(self._sysctl / name, value)
        except OSError as error:
            raise HoldError(f"cannot set kernel.{name} to {value!r}: {error.strerror}") from error
        if (there := self._read(name)) != value:
            raise HoldError(f"the kernel made {there!r} of kernel.{name} {value!r}")

    @property
    def former_pattern(self) -> str | None:
        """The core_pattern that was there before us; None: it is not ours now. HoldError if what
        was saved is damaged."""
        saved = self._load().settings.get(_PATTERN)
        return None if saved is None else saved.original

    def _load(self) -> _Saved:
        try:
            return msgspec.json.decode(self.file.read_bytes(), type=_Saved)
        except FileNotFoundError:
            return _Saved()
        except msgspec.DecodeError as error:
            raise HoldError(
                f"{self.file} is damaged ({error}): set the kernel's core_pattern "
                "by hand, then remove the file"
            ) from error

    def _save(self, saved: _Saved) -> None:
        """Atomic, and on the disk when it returns."""
        partial = self.file.with_suffix(".new")
        try:
            self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            with open(fd, "wb") as file:
                file.write(msgspec.json.encode(saved))
                file.flush()
                os.fsync(fd)
            partial.rename(self.file)
            self._sync_directory()
        except OSError as error:
            raise HoldError(f"{self.file}: cannot save the settings: {error.strerror}") from error

    def _sync_directory(self) -> None:
        fd = os.open(self.file.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def lock(self) -> None:
        """Keep other agents out until `restore`; again does nothing. Raises TakeoverRefused.

        Waits a moment: doctor has the lock for as long as it tries a hand-off. Whoever can open a
        file can lock it (flock(2)), so it is none that others can read, such as the setting itself.
        """
        if self._lock is not None:
            return
        try:
            fd = _open_private(self._lock_file)
        except OSError as error:
            raise HoldError(f"{self._lock_file}: cannot be locked: {error.strerror}") from error
        try:
            _flock(fd)
        except OSError as error:
            os.close(fd)
            if error.errno == errno.EWOULDBLOCK:
                raise TakeoverRefused(
                    "another coreward agent has the hand-off; stop it first"
                ) from error
            raise HoldError(f"{self._lock_file}: cannot be locked: {error.strerror}") from error
        self._lock = fd
        self._spare = Spare(_SPARE)

    def unlock(self) -> None:
        """Let other agents in, whatever the settings are now."""
        self._give_up_spare()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _give_up_spare(self) -> None:
        if self._spare is not None:
            self._spare.close()
            self._spare = None

    def __enter__(self) -> SettingsGuard:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for line in self.restore():
            log.info("%s", line)


def _put(path: Path, value: str) -> None:
    """Write a setting; a coredump socket as from where the kernel takes it. OSError."""
    try:
        path.write_text(f"{value}\n")
    except OSError as error:
        if error.errno != errno.EINVAL or value[:1] != "@" or initial_mounts.are_ours():
            raise
        initial_mounts.write(path, value)


def _open_private(path: Path) -> int:
    """A file that is ours alone, made if need be. OSError EPERM if it is not."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)  # a small system may have no /run
    fd = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    about = os.fstat(fd)
    if about.st_uid != os.geteuid() or about.st_mode & 0o077:
        os.close(fd)
        raise PermissionError(errno.EPERM, "it is open to others; remove it")
    return fd


def _flock(fd: int) -> None:
    """flock(2) within `_PATIENCE_S`. OSError EWOULDBLOCK: somebody else has it."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
