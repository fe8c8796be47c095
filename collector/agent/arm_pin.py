"""One process: opened, told to BPF, and pinned, so that it is armed.

What is looked at is the process's own: whoever calls this may be kept waiting by it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import struct
from collections.abc import Callable
from typing import Protocol

from collector.agent.armed import Armed
from collector.capture.process import OpenProcess
from collector.errors import HoldError
from collector.handoff.pin import Pin
from collector.linux.pagemap import resident_part
from collector.linux.pidfd import has_ended
from collector.model import ProcessKey
from collector.policy.types import ArmRule

_PIN_MS = 2000  # nobody waits for it, and the machine may be busy
_DESCRIPTORS, _SHARE_OF_DESCRIPTORS = 9, 4  # of an armed process; of RLIMIT_NOFILE, a quarter
_WORD = 8  # bytes that a pin reads
_AUXV = struct.Struct("<QQ")
_PHDR, _VDSO = 3, 33  # AT_PHDR, AT_SYSINFO_EHDR <elf.h>


class Told(Protocol):
    """Whose threads BPF tells."""

    def tell(self, key: ProcessKey, rule: ArmRule) -> None:
        """Those of this process, from now on."""

    def forget(self, key: ProcessKey) -> int:
        """Not any more; how many could not be told."""


def pin_process(pid: int, rule: ArmRule, bpf: Told, still: Callable[[], bool]) -> Armed | None:
    """None if it is a child of ours, has ended, or is not `still` the one that was meant.

    Raises CaptureError, OSError or HoldError if it cannot be opened or pinned.
    """
    with contextlib.ExitStack() as undo:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return None
        undo.callback(os.close, pidfd)
        opened = undo.enter_context(OpenProcess(pid))
        if opened.stat.ppid == os.getpid():
            return None
        _ = opened.core_limit  # it cannot be asked when it has ended
        bpf.tell(opened.key, rule)
        undo.callback(bpf.forget, opened.key)
        try:
            pin = Pin(opened.mem_fd, _readable(opened), _PIN_MS)
        except HoldError:
            if has_ended(pidfd):
                return None
            raise
        undo.callback(pin.release)
        if has_ended(pidfd) or not still():  # what was read may be another's
            return None
        undo.pop_all()
        return Armed(opened.key, rule, opened, pin, pidfd)


def is_want(error: Exception) -> bool:
    """Whether it is for want of descriptors."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in (errno.EMFILE, errno.ENFILE)


def room_for_descriptors() -> int:
    """Processes for which there are descriptors; most are left to those that are handed over."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _SHARE_OF_DESCRIPTORS // _DESCRIPTORS


def _readable(opened: OpenProcess) -> int:
    """An address of its memory that can be read without a wait. Raises HoldError."""
    auxv = opened.text.auxv
    entries = dict(_AUXV.iter_unpack(auxv[: len(auxv) & -_AUXV.size]))
    for kind in (_PHDR, _VDSO):
        address: int = entries.get(kind, 0)
        if not address or (kind == _PHDR and not resident_part(opened.pagemap_fd, address, _WORD)):
            continue
        with contextlib.suppress(OSError):
            if len(os.pread(opened.mem_fd, _WORD, address)) == _WORD:
                return address
    raise HoldError("none of its addresses can be read")
