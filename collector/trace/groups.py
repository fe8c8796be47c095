"""The groups of constants that arguments of system calls are made of, and where the headers of the
kernel and of the C library define them. Only names: `headers` asks the compiler for the values.
"""

from __future__ import annotations

from typing import NamedTuple


class Group(NamedTuple):
    """The names that an argument of one kind may have."""

    headers: str  # of <...>, divided by spaces
    names: str  # a regular expression for the whole name
    without: str = r"\b\B"  # names that are no values, or aliases of another
    flags: bool = True  # bits that are or-ed; else one of several values


LIMITS = r".*_(MAX|MIN|SHIFT|MASK|LAST|FIRST|NR|SIZE|BASE|CNT|BITS)"

GROUPS = {
    "errno": Group("asm/errno.h", r"E[A-Z0-9]+", r"EWOULDBLOCK|EDEADLOCK", flags=False),
    "open": Group("asm/fcntl.h", r"O_[A-Z]+|FASYNC", r"O_NDELAY|O_ACCMODE"),
    "dirfd": Group("linux/fcntl.h", r"AT_FDCWD", flags=False),
    "at": Group(
        "linux/fcntl.h",
        r"AT_[A-Z_]+",
        r"AT_FDCWD|AT_EACCESS|AT_REMOVEDIR|AT_STATX_SYNC_.*|AT_HANDLE.*"
        r"|AT_RENAME.*|AT_EXECVE.*",
    ),
    "unlinkat": Group("linux/fcntl.h", r"AT_REMOVEDIR"),
    "access": Group("unistd.h", r"[RWX]_OK"),
    "fcntl": Group(
        "linux/fcntl.h",
        r"F_[A-Z_0-9]+",
        r"F_(RDLCK|WRLCK|UNLCK|EXLCK|SHLCK|OWNER_.*|SEAL_.*"
        r"|LINUX_SPECIFIC_BASE)",
        flags=False,
    ),
    "fd_flags": Group("linux/fcntl.h", r"FD_CLOEXEC"),
    "whence": Group("linux/fs.h", r"SEEK_[A-Z]+", r"SEEK_MAX", flags=False),
    "rename": Group("linux/fs.h", r"RENAME_[A-Z]+"),
    "prot": Group("asm/mman.h", r"PROT_[A-Z]+", r"PROT_NONE"),
    "map": Group(
        "asm/mman.h linux/mman.h", r"MAP_[A-Z_0-9]+", r"MAP_(TYPE|FILE|HUGE_.*|UNINITIALIZED)"
    ),
    "mremap": Group("linux/mman.h", r"MREMAP_[A-Z]+"),
    "fadvise": Group("linux/fadvise.h", r"POSIX_FADV_[A-Z]+", flags=False),
    "madvise": Group("asm/mman.h", r"MADV_[A-Z_]+", flags=False),
    "msync": Group("asm/mman.h", r"MS_(ASYNC|SYNC|INVALIDATE)"),
    "clone": Group(
        "linux/sched.h", r"CLONE_[A-Z_]+", r"CLONE_ARGS.*|CLONE_(CLEAR_SIGHAND|INTO_CGROUP|NEWTIME)"
    ),
    "wait": Group(
        "linux/wait.h", r"W(NOHANG|UNTRACED|STOPPED|EXITED|CONTINUED|NOWAIT)|__W[A-Z]+", r"WSTOPPED"
    ),
    "waitid": Group("linux/wait.h", r"P_[A-Z]+", flags=False),
    "signal": Group(
        "asm/signal.h",
        r"SIG[A-Z]+[0-9]?",
        r"SIG(RTMIN|RTMAX|IOT|POLL|CLD|UNUSED|STKSZ|LOST)",
        flags=False,
    ),
    "sigmask": Group("asm/signal.h", r"SIG_(BLOCK|UNBLOCK|SETMASK)", flags=False),
    "family": Group(
        "sys/socket.h", r"AF_[A-Z0-9]+", r"AF_(MAX|LOCAL|ROUTE|FILE|UNSPEC)", flags=False
    ),
    "socket": Group("sys/socket.h", r"SOCK_[A-Z]+", flags=False),
    "accept4": Group("sys/socket.h", r"SOCK_(NONBLOCK|CLOEXEC)"),
    "so": Group(
        "asm/socket.h", r"SO_[A-Z_]+", r"SO_(GET_FILTER|DETACH_BPF|.*_OLD|.*_NEW)", flags=False
    ),
    "tcp": Group(
        "netinet/tcp.h",
        r"TCP_(NODELAY|MAXSEG|CORK|KEEP[A-Z]+|SYNCNT|LINGER2|DEFER_ACCEPT|WINDOW_CLAMP|INFO"
        r"|QUICKACK|CONGESTION|MD5SIG|USER_TIMEOUT|FASTOPEN|ULP)",
        flags=False,
    ),
    "msg": Group("sys/socket.h", r"MSG_[A-Z_]+"),
    "sol": Group("sys/socket.h netinet/in.h netinet/tcp.h", r"SOL_[A-Z0-9_]+", flags=False),
    "shutdown": Group("sys/socket.h", r"SHUT_[A-Z]+", flags=False),
    "epoll_create": Group("sys/epoll.h", r"EPOLL_CLOEXEC"),
    "epoll_ctl": Group("sys/epoll.h", r"EPOLL_CTL_[A-Z]+", flags=False),
    "eventfd": Group("sys/eventfd.h", r"EFD_[A-Z]+"),
    "inotify": Group("sys/inotify.h", r"IN_(NONBLOCK|CLOEXEC)"),
    "inotify_mask": Group(
        "sys/inotify.h", r"IN_[A-Z_]+", r"IN_(NONBLOCK|CLOEXEC|ALL_EVENTS|CLOSE|MOVE)"
    ),
    "timerfd": Group("sys/timerfd.h", r"TFD_(NONBLOCK|CLOEXEC)"),
    "memfd": Group("linux/memfd.h", r"MFD_[A-Z_]+", r"MFD_HUGE_.*"),
    "clock": Group("linux/time.h", r"CLOCK_[A-Z_]+", flags=False),
    "timer": Group("linux/time.h", r"TIMER_ABSTIME"),
    "itimer": Group("linux/time.h", r"ITIMER_[A-Z]+", flags=False),
    "rlimit": Group("sys/resource.h", r"RLIMIT_[A-Z]+", r"RLIMIT_OFILE", flags=False),
    "rusage": Group("sys/resource.h", r"RUSAGE_[A-Z]+", flags=False),
    "prctl": Group(
        "linux/prctl.h",
        r"PR_(GET|SET|CAP|MCE|TASK|SPEC|SVE|PAC|TAG|SCHED|FP)[A-Z_0-9]*",
        r"PR_(SET_MM|CAP_AMBIENT|SCHED_CORE|SPEC)_[A-Z_]+|PR_SET_PTRACER_ANY",
        flags=False,
    ),
    "arch_prctl": Group("asm/prctl.h", r"ARCH_[A-Z0-9_]+", flags=False),
    "futex": Group(
        "linux/futex.h",
        r"FUTEX_[A-Z_0-9]+",
        r"FUTEX_(.*_PRIVATE|PRIVATE_FLAG|CLOCK_REALTIME|CMD_MASK|WAITERS|OWNER_DIED|TID_MASK"
        r"|BITSET_MATCH_ANY|OP_.*|WAITV_MAX|32)",
        flags=False,
    ),
    "random": Group("linux/random.h", r"GRND_[A-Z]+"),
    "flock": Group("asm/fcntl.h", r"LOCK_(SH|EX|UN|NB)"),
    "statx": Group("linux/stat.h", r"STATX_[A-Z_]+", r"STATX_(ATTR.*|_RESERVED|ALL)"),
    "ioctl": Group(
        "asm/termbits.h linux/serial.h asm/ioctls.h linux/fs.h linux/sockios.h",
        r"(TC|TIO|FIO|SIO|FICLONE|FIFREEZE|FITHAW)[A-Z0-9_]*",
        r"TIOCPKT_.*|TIOCSER_.*|TIOCM_.*|SIOC(DEVPRIVATE|PROTOPRIVATE)|TIOCINQ",
        flags=False,
    ),
    "mount": Group(
        "linux/mount.h", r"MS_[A-Z_]+", r"MS_(MGC_.*|RMT_MASK|VERBOSE|NOSEC|BORN|ACTIVE|NOUSER)"
    ),
    "umount": Group("sys/mount.h", r"MNT_[A-Z]+|UMOUNT_NOFOLLOW"),
    "priority": Group("sys/resource.h", r"PRIO_[A-Z]+", r"PRIO_(MIN|MAX)", flags=False),
    "sched": Group("linux/sched.h", r"SCHED_[A-Z]+", r"SCHED_RESET_ON_FORK", flags=False),
    "splice": Group("fcntl.h", r"SPLICE_F_[A-Z]+"),
    "close_range": Group("linux/close_range.h", r"CLOSE_RANGE_[A-Z]+"),
    "fallocate": Group("linux/falloc.h", r"FALLOC_FL_[A-Z_]+"),
    "seccomp": Group("linux/seccomp.h", r"SECCOMP_(SET|GET)_[A-Z_]+", flags=False),
    "ptrace": Group(
        "linux/ptrace.h asm/ptrace-abi.h",
        r"PTRACE_[A-Z0-9_]+",
        r"PTRACE_(EVENT|O|SYSCALL_INFO|EVENTMSG|PEEKSIGINFO|RSEQ)_.*",
        flags=False,
    ),
}
