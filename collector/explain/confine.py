"""Give up, in this process and for good, what explaining a hostile core does not need.

The child must read files that belong to anybody, beneath any root, so it cannot just become
nobody, and a seccomp filter tight enough to matter would have to know what every later version of
its libraries calls. So it keeps one capability, to read (CAP_DAC_READ_SEARCH), and loses the rest:
as root it becomes the user nobody in a network namespace of its own, which has no interface and
none of the host's abstract sockets. Whoever takes it over can read, but write to nothing but its
two pipes, signal no process of the host's users, gain no privilege and reach no network.

Kernel interfaces: prctl(2), capset(2) (version 3 of the header), setrlimit(2), unshare(2). What
is refused is skipped only where it protects and does not bound: without root there is nothing to
give up.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource

from collector.linux import prctl

_CLONE_NEWNET = 0x40000000  # <linux/sched.h>
_CAPABILITY_VERSION_3 = 0x20080522  # <linux/capability.h>
_CAP_DAC_READ_SEARCH = 2
_NOBODY = 65534
_MAX_OPEN_FILES = 4096
_MAX_OUTPUT = 16 << 20  # bytes; its output may be a file, when it is run by hand

_libc = ctypes.CDLL(None, use_errno=True)


def confine(parent: int, memory: int, cpu_seconds: int, nice: int = 19) -> None:
    """Bound this process: memory in bytes of private memory, CPU in seconds. OSError if it cannot.

    nice: how much it yields to others. parent: who must be alive; this process dies with it, or at
    once if it is gone already.
    """
    prctl.die_with_parent()
    if os.getppid() != parent:
        os._exit(1)
    prctl.forbid_new_privileges()
    os.setpriority(os.PRIO_PROCESS, 0, nice)
    _limit(resource.RLIMIT_DATA, memory)
    _limit(resource.RLIMIT_CPU, cpu_seconds)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, _MAX_OUTPUT)
    _limit(resource.RLIMIT_NOFILE, _MAX_OPEN_FILES)
    if os.geteuid() == 0:
        _become_nobody()
    # last, because setuid(2) changes it: no core, no ptrace, not even by another nobody
    prctl.set_dumpable(False)


def _become_nobody() -> None:
    with contextlib.suppress(OSError):  # a container may not be allowed to
        _check("unshare", _libc.unshare(_CLONE_NEWNET))
    prctl.keep_capabilities()
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    mask = 1 << _CAP_DAC_READ_SEARCH
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)(mask, mask, 0, 0, 0, 0)  # effective, permitted, inheritable
    if _libc.capset(header, sets) != 0:  # not even this one is there to be kept
        sets = (ctypes.c_uint32 * 6)()
        _check("capset", _libc.capset(header, sets))


def _limit(which: int, value: int) -> None:
    hard = resource.getrlimit(which)[1]
    bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (bound, bound))


def _check(call: str, result: int) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{call}: {os.strerror(error)}")
