"""explain: another process unwinds the stack of a small core, and says what happened in words."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Hashable, Mapping
from functools import partial
from pathlib import Path
from typing import Self

import msgspec

from collector.agent.context import Context
from collector.agent.crash import Crash
from collector.agent.export import end
from collector.explain.blame import OUTERMOST
from collector.explain.run import explain_core
from collector.linux.bounded import bytes_of
from collector.linux.clock import boot_to_utc

log = logging.getLogger(__name__)

_NICE = 19  # of who explains: nobody waits for it


class Files(msgspec.Struct, frozen=True, kw_only=True):
    """Descriptors through which a dead process's files are found; None: by their paths."""

    root: int | None = None
    exe: int | None = None
    mounts: int | None = None  # its mount namespace, else the mounts below its root may go
    code: dict[int, int] = {}  # address in a mapping -> its file, where that has no path any more

    @classmethod
    def duplicate(cls, *fds: int | None, code: Mapping[int, int] | None = None) -> Self:
        """New descriptors of root, exe and mounts, and of `code`. OSError: there are none left."""
        with contextlib.ExitStack() as undo:

            def own(fd: int | None) -> int | None:
                copy = None if fd is None else os.dup(fd)
                if copy is not None:
                    undo.callback(os.close, copy)
                return copy

            root, exe, mounts = map(own, fds)
            copies = {start: own(fd) for start, fd in (code or {}).items()}
            undo.pop_all()
            known = {start: fd for start, fd in copies.items() if fd is not None}
            return cls(root=root, exe=exe, mounts=mounts, code=known)

    def close(self) -> None:
        for fd in (self.root, self.exe, self.mounts, *self.code.values()):
            if fd is not None:
                os.close(fd)


def explain(
    context: Context,
    crash: Crash,
    core: int,
    files: Files,
    *,
    owner: Hashable,
    cut: str | None = None,
) -> None:
    """Have a core explained; never waits. All descriptors are not the caller's more.

    core: descriptor of a small core, which is in memory alone. owner: whose share of the lane it
    takes. cut: why outer frames are not in this core, if there are any.
    """
    crash.begin("explanation")
    # of what was killed, which may be much on a busy host, no crash waits behind that
    lane = context.lanes.kills if files.root is None else context.lanes.explains
    give_up = partial(_give_up, context, crash, core, files)
    if not lane.submit(
        partial(_explain, context, crash, core, files, cut),
        dropped=partial(give_up, "the agent was stopped before"),
        owner=owner,
        size=bytes_of(core),
    ):
        give_up("too many explanations were waiting already")


def _give_up(context: Context, crash: Crash, core: int, files: Files, why: str) -> None:
    files.close()
    os.close(core)
    crash.lose("frames", why)
    end(context, crash, "explanation")


def _explain(context: Context, crash: Crash, core: int, files: Files, cut: str | None) -> None:
    exe = None if files.exe is None else Path(f"/proc/self/fd/{files.exe}")
    try:
        found = explain_core(
            Path(f"/proc/self/fd/{core}"),
            signature=context.policy.policy.signature,
            exe=exe,
            root_fd=files.root,
            mapped=files.code,
            keep=context.store.place(crash.record),
            report=not crash.redact.texts,  # it has the environment, and what registers point to
            began=boot_to_utc(crash.record.start_ns).timestamp(),
            timeout=context.policy.policy.capture.explain_time,
            nice=_NICE,
        )
    except Exception as error:  # its record must be closed all the same
        log.exception("record %s", crash.record.id)
        _give_up(context, crash, core, files, f"the agent failed: {error!r}")
        return
    files.close()
    os.close(core)
    crash.explained(found)
    if cut is not None and found.frames and found.frames[-1].function not in OUTERMOST:
        crash.lose("outer_frames", cut)
    end(context, crash, "explanation")
