"""Sets of system calls by names, as strace's `-e trace=` has them, as bits by number. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from collector.arch.signatures import signature
from collector.arch.syscalls import syscall_name
from collector.arch.x86_64 import CODE_32_BIT

NUMBERS = 512  # of one kind of code; as CW_CALL_NUMBERS in bpf/trace.h
_WORDS = NUMBERS // 64
_LONG = 10  # digits; a number of so many is out of range
_OTHER = NUMBERS - 1  # the bit of numbers that are out of range (x32, nonsense)
Wanted = tuple[int, ...]  # 8 words of 64-bit code's numbers, 8 of 32-bit code's

_NETWORK = re.compile(
    r"socket|bind|connect|listen|accept4?|getsockname|getpeername|socketpair|setsockopt|getsockopt"
    r"|send(to|msg|mmsg)|recv(from|msg|mmsg)(_time64)?|shutdown|socketcall"
)
_PROCESS = re.compile(
    r"clone3?|fork|vfork|execve(at)?|exit(_group)?|wait4|waitid|waitpid|kill|tkill|tgkill"
    r"|rt_(tg)?sigqueueinfo|pidfd_(open|send_signal)|process_mrelease"
)
_SIGNAL = re.compile(
    r"(rt_)?sig(action|procmask|pending|suspend|return|timedwait(_time64)?|queueinfo)|rt_tgsigqueueinfo"
    r"|signal|sigaltstack|signalfd4?|kill|tkill|tgkill|pause|pidfd_send_signal|s[gs]etmask"
)
_MEMORY = re.compile(
    r"mmap2?|munmap|mremap|mprotect|pkey_mprotect|brk|mlock2?|munlock|mlockall|munlockall|madvise"
    r"|process_madvise|msync|mincore|mbind|set_mempolicy|get_mempolicy|migrate_pages|move_pages"
    r"|remap_file_pages|shmat|shmdt|mseal|map_shadow_stack"
)
_IPC = re.compile(r"(sem|shm|msg)(get|op|ctl|at|dt|snd|rcv)|semtimedop(_time64)?|ipc")
_DESCRIPTOR_KINDS = {"dirfd"}
_DESCRIPTOR = re.compile(
    r"(p?(read|write)(v2?|64)?|close|close_range|dup[23]?|fcntl(64)?|ioctl|_?llseek|lseek|poll|ppoll"
    r"|select|pselect6|pipe2?|epoll_.*|eventfd2?|signalfd4?|timerfd_.*|inotify_.*|fstat(64|fs|fs64)?"
    r"|getdents(64)?|f(sync|datasync|chdir|chmod|chown|truncate|lock|allocate|advise64)|flock|splice"
    r"|tee|vmsplice|sendfile(64)?|copy_file_range|mmap2?|memfd_create|syncfs|userfaultfd|bpf"
    r"|perf_event_open|io_uring_.*|open.*|creat|socket|accept4?|socketpair|pidfd_.*|fanotify_.*)"
)
_SETS = {
    "network": _NETWORK,
    "net": _NETWORK,
    "process": _PROCESS,
    "signal": _SIGNAL,
    "memory": _MEMORY,
    "ipc": _IPC,
}


def _is_in(set_name: str, call: str) -> bool:
    if set_name == "file":
        return "path" in signature(call).kinds
    if set_name == "desc":
        is_at = bool(_DESCRIPTOR_KINDS & set(signature(call).kinds))
        return is_at or bool(_DESCRIPTOR.fullmatch(call) or _NETWORK.fullmatch(call))
    return bool(_SETS[set_name].fullmatch(call))


def _all_names() -> dict[tuple[int, int], str]:
    """(kind of code, number) -> name."""
    found = {}
    for kind, segment in enumerate((0, CODE_32_BIT)):
        for number in range(NUMBERS):
            if name := syscall_name(number, segment):
                found[kind, number] = name
    return found


EVERYTHING: Wanted = ((1 << 64) - 1,) * (2 * _WORDS)


def wanted(words: Iterable[str], *, but: bool = False) -> Wanted:
    """The bits of these calls; with `but` of all others.

    A word is a name, `%set`, `/regex`, `all`, `none` or a number; with `?` it may be unknown.
    ValueError says what is no call and no set.
    """
    names = _all_names()
    bits = [0] * (2 * _WORDS)
    for word in words:
        for code, number in _numbers(word, names):
            bits[code * _WORDS + number // 64] |= 1 << (number % 64)
    return tuple(word ^ ((1 << 64) - 1) for word in bits) if but else tuple(bits)


def _numbers(word: str, names: dict[tuple[int, int], str]) -> list[tuple[int, int]]:
    optional = word.startswith("?")
    word = word.removeprefix("?")
    if word == "all":
        return [(code, number) for code in (0, 1) for number in range(NUMBERS)]
    if word == "none":
        return []
    if word.isascii() and word.isdigit():
        number = int(word) if len(word) < _LONG else _OTHER
        return [(code, min(number, _OTHER)) for code in (0, 1)]
    if word.startswith("/"):
        try:
            pattern = re.compile(word[1:])
        except re.error as error:
            raise ValueError(f"{word[1:]}: {error}") from None
        found = [at for at, name in names.items() if pattern.search(name)]
    elif word.startswith("%"):
        if word[1:] not in ("file", "desc", *_SETS):
            known = ", ".join(sorted({"file", "desc", *_SETS} - {"net"}))
            raise ValueError(f"{word}: the sets are {known}")
        found = [at for at, name in names.items() if _is_in(word[1:], name)]
    else:
        found = [at for at, name in names.items() if name == word]
    if not found and not optional:
        raise ValueError(f"no system call is named {word!r}")
    return found
