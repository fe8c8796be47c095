"""Calls and tables for the tests of what a trace shows; no kernel, no built table."""

from __future__ import annotations

from collector.arch.syscalls import syscall_number
from collector.trace.layout import Call, Text
from collector.trace.symbols import Symbols

SYMBOLS = Symbols(
    {
        "errno": {"ENOENT": 2, "EINTR": 4},
        "dirfd": {"AT_FDCWD": -100},
        "open": {
            "O_RDONLY": 0,
            "O_WRONLY": 1,
            "O_RDWR": 2,
            "O_CREAT": 0o100,
            "O_CLOEXEC": 0o2000000,
            "O_DSYNC": 0o10000,
            "O_SYNC": 0o4010000,
            "O_NONBLOCK": 0o4000,
        },
        "prot": {"PROT_READ": 1, "PROT_WRITE": 2},
        "map": {"MAP_PRIVATE": 2, "MAP_ANONYMOUS": 0x20},
        "access": {"R_OK": 4, "W_OK": 2},
        "futex": {
            "FUTEX_WAIT": 0,
            "FUTEX_WAKE": 1,
            "FUTEX_WAIT_BITSET": 9,
            "FUTEX_WAKE_BITSET": 10,
        },
        "fcntl": {"F_GETFD": 1, "F_SETFD": 2, "F_GETFL": 3, "F_SETFL": 4},
        "fd_flags": {"FD_CLOEXEC": 1},
        "clone": {"CLONE_VM": 0x100, "CLONE_CHILD_SETTID": 0x1000000},
        "family": {"AF_UNIX": 1, "AF_INET": 2},
        "socket": {"SOCK_STREAM": 1},
        "accept4": {"SOCK_NONBLOCK": 0o4000, "SOCK_CLOEXEC": 0o2000000},
        "sol": {"SOL_SOCKET": 1, "SOL_TCP": 6},
        "so": {"SO_REUSEADDR": 2},
        "tcp": {"TCP_NODELAY": 1},
        "wait": {"WNOHANG": 1},
        "sigmask": {"SIG_BLOCK": 0},
    }
)


def call(
    name: str,
    *args: int,
    result: int | None = 0,
    texts: dict[int, Text] | None = None,
    compat: bool = False,
) -> Call:
    """A call of 64-bit code, unless it is `compat`; negative arguments as registers hold them."""
    words = tuple(arg & (2**64 - 1) for arg in (*args, *[0] * (6 - len(args))))
    number = syscall_number(name) if not compat else int(name)
    return Call(
        number=number,
        args=words,
        result=result,
        enter_ns=1000,
        exit_ns=3000,
        compat=compat,
        texts=texts or {},
    )
