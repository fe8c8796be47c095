"""Which way the kernel hands crashes over here, found out by doing it.

`open_backend` sets the kernel up for one way and lets a child of its own crash; what arrives is
proof that documentation and version numbers are not. What to do with a crash is not decided here.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import select
import signal
import time
from collections.abc import Callable, MutableMapping
from pathlib import Path
from types import TracebackType

from collector import proof
from collector.errors import HoldError, TakeoverRefused
from collector.handoff.coredump_socket import SocketBackend
from collector.handoff.native import Native, Taken
from collector.handoff.overwrites import Overwrites
from collector.handoff.pipe import PATIENCE_S, PipeBackend, SpooledNotes
from collector.handoff.settings import SettingsGuard
from collector.handoff.trust import check_folders
from collector.linux import prctl
from collector.model import Backend
from collector.native.build import NAME, find

log = logging.getLogger(__name__)

SOCKET_NAME = "core.sock"
_PROBE_TIMEOUT_S = 2.0
_PROOFS = 3  # a busy machine may not let us answer in `hold.patience`
_LOOK_S = 0.05  # whether a child that crashes has ended without being handed over


Listener = SocketBackend | PipeBackend


class OpenBackend:
    """A way that works, with the kernel set up for it. A context manager.

    A crash may have come in while the backend was opened: `accept` gives it out first.
    The agent must not be dumpable while this is open, or it would wait for itself if it crashed;
    so it is not.
    """

    def __init__(self, listener: Listener, native: Native, guard: SettingsGuard) -> None:
        self.listener = listener
        self._native = native
        native.serve(listener)
        self.backend = listener.backend
        self.pattern = listener.pattern
        self.reason = ""  # why not a better one
        self.opened_ns = 0  # since when it works, CLOCK_BOOTTIME
        self._guard = guard
        self.overwrites = Overwrites(self.pattern, self._take_again)
        self._early: collections.deque[Taken] = collections.deque()
        self._forget: Callable[[str], None] | None = None  # of who keeps the listening socket
        self._was_dumpable = prctl.is_dumpable()
        prctl.set_dumpable(False)

    @property
    def refused(self) -> int:
        """Connections so far that were not the kernel's."""
        return self.listener.refused

    @property
    def late(self) -> int:
        """Hand-offs so far that were given up before we answered (pipe only)."""
        return self.listener.late if isinstance(self.listener, PipeBackend) else 0

    def is_in_place(self) -> bool:
        """Whether the kernel still hands crashes over to us, or others have changed its setting."""
        return self._guard.is_set(self.pattern)

    def _take_again(self) -> None:
        self._guard.takeover(self.pattern, self.listener.pipe_limit, allow=True)

    def accept(self, timeout_s: float | None = None) -> Taken | None:
        """The next dying process; None if there is none in that time, or it was closed.

        Thread-safe. Connections that are no hand-offs are closed, counted in `refused` and logged.
        """
        with contextlib.suppress(IndexError):
            return self._early.popleft()
        return self._take(timeout_s)

    def _take(self, timeout_s: float | None) -> Taken | None:
        while True:
            try:
                return self._native.take(timeout_s)
            except HoldError as error:
                self.listener.refuse(error)

    def notes(self) -> SpooledNotes:
        """Deaths that nobody held while no agent ran; each is told once (pipe only)."""
        if isinstance(self.listener, PipeBackend):
            return self.listener.notes()
        return SpooledNotes([], 0)

    @property
    def is_kept(self) -> bool:
        """Whether somebody keeps the listening socket for the next agent."""
        return self._forget is not None

    def keep(self, keep: Callable[[str, int], bool], forget: Callable[[str], None]) -> None:
        """Have a copy of the listening socket kept under a name, until `close` has it forgotten."""
        if keep(kept_name(self.listener.backend), self.listener.fileno()):
            self._forget = forget

    def leave(self) -> None:
        """Take no more, and leave the settings as they are: what the kernel hands over from now on
        waits in the socket that is kept. Hand-offs that were accepted stay held, and ours."""
        self.overwrites.close()
        self._native.stop_taking()
        self.listener.leave()
        self._guard.unlock()

    def close(self) -> None:
        """Give the settings back, then stop listening. Hand-offs that were accepted stay held."""
        self.overwrites.close()
        try:
            if self.listener.fileno() >= 0:  # else it was closed or left
                for line in self._guard.restore(unlock=False):
                    log.info("%s", line)
        finally:
            while self._early:
                self._early.popleft().close()
            if self.listener.fileno() >= 0 and self._forget is not None:
                self._forget(kept_name(self.listener.backend))
            self.listener.close()
            self._guard.unlock()  # the next agent's socket has the same name
            if self._was_dumpable:
                prctl.set_dumpable(True)

    def prove(self) -> None:
        """Let a child crash and see it arrive; on a busy machine, let another one.

        Raises HoldError if each died without, or took 2 s.
        """
        for _ in range(_PROOFS - 1):
            with contextlib.suppress(HoldError):
                self._prove()
                return
        self._prove()

    def _prove(self) -> None:
        child = proof.die(dumpable=True)
        ended = os.pidfd_open(child)
        end = select.poll()
        end.register(ended, select.POLLIN)
        try:
            deadline = time.monotonic() + _PROBE_TIMEOUT_S
            while (left := deadline - time.monotonic()) > 0:
                has_ended = bool(end.poll(0))  # before we look, not after
                taken = self._take(0 if has_ended else min(left, _LOOK_S))
                if taken is not None and taken.handoff.pid == child:
                    return taken.close()
                if taken is not None:
                    self._early.append(taken)
                elif has_ended:
                    break
            raise HoldError("the kernel took the core_pattern, but a crash did not arrive")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(ended)

    def __enter__(self) -> OpenBackend:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class NoBackend:
    """Crashes are seen by BPF alone: nothing is held, no memory is kept. `reason` says why."""

    backend = "none"
    pattern = None
    opened_ns = 0
    is_kept = False
    refused = 0
    late = 0

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def accept(self, timeout_s: float | None = None) -> None:
        return None

    def notes(self) -> SpooledNotes:
        return SpooledNotes([], 0)

    def leave(self) -> None:
        """Nothing to leave to others."""

    def close(self) -> None:
        """Nothing to give back."""

    def __enter__(self) -> NoBackend:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_backend(
    kind: Backend,
    run_dir: Path,
    guard: SettingsGuard,
    native: Native,
    takeover: bool,
    helper: Path | None = None,
    patience_s: float = PATIENCE_S,
    kept: MutableMapping[str, int] | None = None,
) -> OpenBackend | NoBackend:
    """Set the kernel up to hand crashes over to us, and prove that it does.

    `auto` takes the socket, else the pipe, else none with the reasons. `run_dir` holds the sockets
    and the pipe helper's notes; it is made, 0700. `helper`: the built pipe helper, by default the
    one of this installation. `patience_s`: see PipeBackend. `kept`: listening sockets of an earlier
    agent, by the names that `kept_name` gives; the one that is used is taken out.

    Raises TakeoverRefused if another crash handler is installed and `takeover` is false, HoldError
    if a backend that was asked for by name does not work.
    """
    if kind is Backend.NONE:
        return NoBackend("hold.backend is none")
    kept = {} if kept is None else kept
    ways: dict[Backend, Callable[[int | None], Listener]] = {
        Backend.SOCKET: lambda fd: SocketBackend(run_dir / SOCKET_NAME, fd),
        Backend.PIPE: lambda fd: PipeBackend(run_dir, _helper(helper), patience_s, fd),
    }
    own_directory(run_dir)
    reasons: list[str] = []
    for name in ways if kind is Backend.AUTO else (kind,):
        try:
            backend = _open_kept(
                ways[name], kept.pop(kept_name(name), None), native, guard, takeover
            )
        except TakeoverRefused:
            raise
        except HoldError as error:
            if kind is not Backend.AUTO:
                raise HoldError(f"hold.backend: {name} does not work here: {error}") from error
            reasons.append(f"{name}: {error}")
            continue
        backend.reason = "; ".join(reasons)
        backend.opened_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        return backend
    return NoBackend("; ".join(reasons))


def kept_name(backend: str) -> str:
    """By which the listening socket of this backend is kept."""
    return f"coreward-{backend}"


def _open_kept(
    listen: Callable[[int | None], Listener],
    kept: int | None,
    native: Native,
    guard: SettingsGuard,
    takeover: bool,
) -> OpenBackend:
    """With the socket that was kept, or another one if nothing arrives there."""
    if kept is not None:
        try:
            return _open_one(lambda: listen(kept), native, guard, takeover)
        except TakeoverRefused:
            raise
        except HoldError as error:
            log.warning("the socket that was kept does not do any more: %s", error)
    return _open_one(lambda: listen(None), native, guard, takeover)


def _open_one(
    listen: Callable[[], Listener], native: Native, guard: SettingsGuard, takeover: bool
) -> OpenBackend:
    guard.lock()  # before the listener: it replaces the socket of an earlier run, not a live one
    try:
        listener = listen()
    except BaseException:
        guard.restore()
        raise
    backend = OpenBackend(listener, native, guard)
    try:
        guard.takeover(listener.pattern, listener.pipe_limit, takeover)
        backend.prove()
    except BaseException:
        backend.close()
        raise
    return backend


def _helper(given: Path | None) -> Path:
    path = given or find(NAME)
    if path is None:
        raise HoldError("the pipe helper was not built; run `make setup`")
    return path


def own_directory(path: Path) -> None:
    """Make `path` ours alone: others must be able neither to connect, nor to put files there, nor
    to put a folder of theirs in its place."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = path.stat()
        if about.st_uid != os.geteuid():
            raise HoldError(f"{path} belongs to uid {about.st_uid}: remove it, or use another")
        path.chmod(0o700)
        check_folders(path.resolve())
    except OSError as error:
        raise HoldError(f"{path}: cannot be used for sockets: {error.strerror}") from error
