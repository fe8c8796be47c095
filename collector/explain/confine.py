"""Give up, in this process and for good, what explaining a hostile core does not need.

Whoever takes the child over by a hostile core can read, and answer; nothing else:

- A filter of system calls (seccomp(2)) allows what reading files and computing needs, and threads.
  No file is opened for writing, made, renamed or removed; there are no sockets at all, no execve,
  no processes, no namespaces, no mounts, no ptrace, no signals to others, no locks that others
  would wait for. The filter looks at flags in registers, so openat2(2), whose flags are in memory,
  is not allowed: `files` follows paths by itself.
- As root it becomes a user that nobody else is, not even another explaining child. It must read
  files that belong to anybody, beneath any root, so it keeps one capability, to read
  (CAP_DAC_READ_SEARCH), and loses the rest.

Kernel interfaces: prctl(2), capset(2) (version 3 of the header), setrlimit(2). Nothing of it is
skipped: without it there is no explanation.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource

from collector.linux import oom_score, prctl
from collector.linux.seccomp import Call, install

_CAPABILITY_VERSION_3 = 0x20080522  # <linux/capability.h>
_CAP_DAC_READ_SEARCH = 2
_NOBODY = 65534
# From here on ids are nobody's: neither of users, nor of containers. systemd's UIDS-GIDS.md
_OWN_IDS = 0x70000000
_MAX_OPEN_FILES = 4096
_MAX_OUTPUT = 16 << 20  # bytes; its output may be a file, when it is run by hand

_NOT_FOR_READING = (
    os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_TMPFILE & ~os.O_DIRECTORY
)
_CLONE_THREAD = 0x10000  # <linux/sched.h>
# CLONE_NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_CLONE_NEW = 0x80 | 0x20000 | 0x2000000 | 0x4000000 | 0x8000000 | 0x10000000 | 0x60000000
_FCNTL = (0, 1, 2, 3, 1030)  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC <linux/fcntl.h>
_IOCTL = (0x5401, 0x5451, 0x5450, 0x541B)  # TCGETS, FIOCLEX, FIONCLEX, FIONREAD <asm/ioctls.h>
_PRCTL = (15, 16, 0x53564D41)  # PR_SET_NAME, PR_GET_NAME, PR_SET_VMA
_HARMLESS = """
    read pread64 readv preadv preadv2 lseek close close_range dup dup2 dup3 write writev
    stat fstat lstat newfstatat statx statfs fstatfs access faccessat faccessat2
    readlink readlinkat getdents getdents64 getcwd fadvise64 readahead poll ppoll select pselect6
    mmap munmap mremap mprotect brk madvise mincore msync
    rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack restart_syscall pause
    futex set_robust_list get_robust_list rseq set_tid_address arch_prctl membarrier
    sched_yield sched_getaffinity sched_getparam sched_getscheduler getpriority getcpu
    getpid gettid getppid getuid geteuid getgid getegid getgroups getresuid getresgid
    gettimeofday time times getrusage getrlimit clock_gettime clock_getres clock_nanosleep
    nanosleep uname sysinfo getrandom exit exit_group
"""

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
    oom_score.volunteer(oom_score.WORKER)
    os.setpriority(os.PRIO_PROCESS, 0, nice)
    _limit(resource.RLIMIT_DATA, memory)
    _limit(resource.RLIMIT_CPU, cpu_seconds)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, _MAX_OUTPUT)
    _limit(resource.RLIMIT_NOFILE, _MAX_OPEN_FILES)
    if os.geteuid() == 0:
        _become_somebody()
    # late, because setuid(2) changes it: no core, no ptrace, not even by another child
    prctl.set_dumpable(False)
    install(_allowed())


def _allowed() -> list[Call]:
    return [
        *map(Call, _HARMLESS.split()),
        Call("open", argument=1, without_bits=_NOT_FOR_READING),
        Call("openat", argument=2, without_bits=_NOT_FOR_READING),
        Call("clone", with_bits=_CLONE_THREAD, without_bits=_CLONE_NEW),
        Call("fcntl", argument=1, one_of=_FCNTL),
        Call("ioctl", argument=1, one_of=_IOCTL),
        Call("prctl", one_of=_PRCTL),
        Call("prlimit64", one_of=(0,)),  # its own, which it can only lower
        Call("tgkill", one_of=(os.getpid(),)),  # abort(3)
    ]


def _become_somebody() -> None:
    """A user of our own, and without all capabilities but one."""
    prctl.keep_capabilities()
    os.setgroups([])
    own = _OWN_IDS + os.getpid()
    try:
        os.setresgid(own, own, own)
        os.setresuid(own, own, own)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a user namespace that has no such id
            raise
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
