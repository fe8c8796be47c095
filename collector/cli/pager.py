"""Long output on a terminal goes through a pager, as git's does.

`$COREWARD_PAGER`, `$PAGER` or less(1), which ends by itself where one screen is enough. Not in a
pipe, not with --no-pager, not on a terminal that can do nothing (`TERM=dumb`). Under sudo, doas
and pkexec it is less(1) that starts no other program: whoever may run this command as root may not
run a shell.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping

from collector.cli.output import Terminal, say_no_more, terminal, through_a_pager

_LENT = frozenset(("SUDO_UID", "DOAS_USER", "PKEXEC_UID"))
_LESS = {"LESS": "FRX", "LV": "-c"}  # colours, and no screen of its own


@contextlib.contextmanager
def paged() -> Iterator[None]:
    """Within, what is printed is shown by the pager, if there is one; then it is waited for."""
    shown = terminal()
    command = None if shown is None or shown.dumb else command_of(os.environ)
    if shown is None or command is None:
        yield
        return
    with _running(command, shown):
        yield


def command_of(environment: Mapping[str, str]) -> str | None:
    """What the shell runs; None: no pager."""
    if _is_lent(environment):
        return "less" if shutil.which("less") else None
    command = environment.get("COREWARD_PAGER", environment.get("PAGER", "less")).strip()
    try:
        words = shlex.split(command)
    except ValueError:
        return None
    return command if words and words != ["cat"] and shutil.which(words[0]) else None


def _is_lent(environment: Mapping[str, str]) -> bool:
    """Whether somebody may run us as another user, and perhaps nothing else."""
    return not _LENT.isdisjoint(environment)


@contextlib.contextmanager
def _running(command: str, shown: Terminal) -> Iterator[None]:
    environment = {**_LESS, **os.environ}
    if _is_lent(environment):
        environment = {**environment, **_LESS, "LESSSECURE": "1"}
    sys.stdout.flush()
    pager = subprocess.Popen(["/bin/sh", "-c", command], stdin=subprocess.PIPE, env=environment)
    assert pager.stdin is not None
    # what is said beside it would be drawn over
    ours = [sys.stdout.fileno(), *([2] if os.isatty(2) else [])]
    before = [os.dup(fd) for fd in ours]
    for fd in ours:
        os.dup2(pager.stdin.fileno(), fd)
    pager.stdin.close()
    try:
        with through_a_pager(shown):
            yield
    finally:
        # Ctrl-C is the pager's as well, which goes on: the terminal is its own until it ends
        with _uninterrupted():
            try:
                sys.stdout.flush()
            except BrokenPipeError:
                say_no_more()  # it has ended, and does not want the rest
            for fd, was in zip(ours, before, strict=True):
                os.dup2(was, fd)
                os.close(was)
            pager.wait()


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
