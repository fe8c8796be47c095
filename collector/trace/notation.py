"""Events in the notation of strace(1): `openat(AT_FDCWD, "/etc/passwd", O_RDONLY) = 3`.

Pure. All that comes from a traced process is a number, or is quoted with everything but printable
ASCII escaped: a line is one line, and nothing in it is obeyed by a terminal.
"""

from __future__ import annotations

import os
from typing import TypeVar

from collector import siginfo
from collector.arch.signatures import Signature, signature
from collector.arch.syscalls import syscall_name
from collector.arch.x86_64 import CODE_32_BIT
from collector.signals import signal_name
from collector.trace.layout import (
    Call,
    CallEvent,
    Event,
    ExecEvent,
    ExitEvent,
    ForkEvent,
    KeptEvent,
    SentEvent,
    SignalEvent,
    Text,
    WaitEvent,
)
from collector.trace.symbols import RESTARTS, Symbols
from collector.trace.values import (
    integers,
    long,
    pointer,
    quoted,
    siginfo_parts,
    signed,
    socket_address,
    text_or_pointer,
    wait_status,
)

_Key = TypeVar("_Key")
_Kept = TypeVar("_Kept")
_REMEMBERED = 65_536  # signals that were not taken yet, or calls of execve(2) that go on
_X32 = 1 << 30  # __X32_SYSCALL_BIT
_O_CREATES = 0o100 | 0o20000000  # O_CREAT, __O_TMPFILE: only then open(2) has a mode
_FUTEX_FOUR = frozenset({0, 3, 4, 5, 6, 11, 12, 13})  # operations with more than three arguments
_FUTEX_SIX = frozenset({3, 4, 5, 11, 12})
_FUTEX_BITSET = {9: (0, 1, 2, 3), 10: (0, 1, 2)}  # FUTEX_WAIT_BITSET, _WAKE_: what is before it
_ANY_BIT = 0xFFFFFFFF  # FUTEX_BITSET_MATCH_ANY
_SOL_SOCKET, _SOL_TCP = 1, 6
_FCNTL_NO_ARGUMENT = frozenset({1, 3, 9, 11, 1025, 1032, 1034})
_FCNTL_OPEN, _FCNTL_FD = 4, 2
_FCNTL_RESULTS = {1: "fd_flags", 3: "open"}  # F_GETFD, F_GETFL


def call_name(call: Call) -> str:
    """`openat`; `syscall_0x7b` for a number without a name."""
    number = call.number & ~_X32 if not call.compat else call.number
    return syscall_name(number, CODE_32_BIT if call.compat else 0) or f"syscall_{call.number:#x}"


class Notation:
    """Turns events into text. Keeps who was executed last, for the arguments of execve(2), and who
    sent the signals that are yet to be taken."""

    def __init__(self, symbols: Symbols) -> None:
        self._symbols = symbols
        self._arguments: dict[int, ExecEvent] = {}  # by thread: of its execve(2) that goes on
        self._senders: dict[tuple[int, int], SentEvent] = {}  # by process and signal

    def lines(self, event: Event) -> list[str]:
        """The lines of an event, without the thread's number; none for one that only informs."""
        lines = [f"--- {event.lost} events of this thread were lost here ---"] if event.lost else []
        match event:
            case CallEvent():
                return [*lines, self.call(event.call, self._arguments.pop(event.tid, None))]
            case SignalEvent():
                return [*lines, *self._signal(event)]
            case SentEvent():
                _remember(self._senders, (event.tgid, event.signal), event)
            case ExecEvent():
                _remember(self._arguments, event.tid, event)
                if event.old_tid != event.tid:
                    lines.append(f"+++ superseded by execve in pid {event.old_tid} +++")
            case ForkEvent() if event.untraced:
                lines.append(f"--- {event.child_tid} is not followed: the kernel had no memory ---")
            case ExitEvent():
                self._forget(event)
                lines.append(f"+++ {ending(event.status)} +++")
            case WaitEvent():
                lines.append("--- stopped until its events are read ---")
            case KeptEvent():
                lines += [self.call(call) for call in event.calls]
        return lines

    def _forget(self, event: ExitEvent) -> None:
        self._arguments.pop(event.tid, None)
        if event.last:
            for key in [key for key in self._senders if key[0] == event.tgid]:
                del self._senders[key]

    def call(self, call: Call, became: ExecEvent | None = None) -> str:
        """One call with its result."""
        return f"{self.begun(call, became)}) = {self.result(call)}"

    def begun(self, call: Call, became: ExecEvent | None = None) -> str:
        """A call up to its last argument, without the closing parenthesis."""
        name = call_name(call)
        found = signature(name)
        words = self._special(name, call) or [
            self._word(call, found, index) for index in range(len(found.kinds))
        ]
        if name == "execve" and became is not None and became.arguments:
            last = len(became.arguments) - 1
            shown = [
                quoted(a, cut=became.cut and i == last) for i, a in enumerate(became.arguments)
            ]
            words[1] = f"[{', '.join(shown)}]"
            if 0 not in call.texts or call.texts[0].data is None:
                words[0] = quoted(became.path)  # it was not in memory at the entry
        return f"{name}({', '.join(words)}"

    def result(self, call: Call) -> str:
        """`3`, `-1 ENOENT (No such file or directory)`, `?`."""
        value = call.result
        if value is None:
            return "?"
        if -4096 < value < 0:
            sign = "?" if -value in RESTARTS else "-1"
            return f"{sign} {self._symbols.error(-value)}"
        name = call_name(call)
        if name in ("fcntl", "fcntl64") and (group := _FCNTL_RESULTS.get(call.args[1])):
            shown = hex(value) if value else "0"
            return f"{shown} (flags {self._symbols.text(group, value)})" if value else shown
        kind = signature(name).result
        if kind == "x":
            return hex(value & (2**64 - 1))
        return f"0{value:o}" if kind == "o" and value else str(value)

    def _special(self, name: str, call: Call) -> list[str] | None:
        """Calls whose arguments depend on one another."""
        args = call.args
        match name:
            case "open" | "openat":
                count = 2 if name == "open" else 3
                if not args[count - 1] & _O_CREATES:
                    return [self._word(call, signature(name), i) for i in range(count)]
            case "mmap" | "mmap2":
                words = [self._word(call, signature(name), i) for i in range(6)]
                return [*words[:5], "0" if not args[5] else hex(args[5])]
            case "clone" if not call.compat:
                return self._clone(args)
            case "futex":
                operation = args[1] & 0x7F
                if before := _FUTEX_BITSET.get(operation):
                    words = [self._word(call, signature(name), i) for i in before]
                    bits = args[5] & _ANY_BIT
                    return [*words, "FUTEX_BITSET_MATCH_ANY" if bits == _ANY_BIT else hex(bits)]
                count = 6 if operation in _FUTEX_SIX else 4 if operation in _FUTEX_FOUR else 3
                return [self._word(call, signature(name), i) for i in range(count)]
            case "fcntl" | "fcntl64":
                return self._fcntl(call)
            case "setsockopt" | "getsockopt":
                words = [self._word(call, signature(name), i) for i in range(5)]
                group = {_SOL_SOCKET: "so", _SOL_TCP: "tcp"}.get(args[1])
                if group is not None:
                    words[2] = self._symbols.text(group, args[2])
                return words
            case "getcwd" if (text := call.texts.get(0)) is not None and text.data is not None:
                path = Text(text.data.removesuffix(b"\0"), text.cut, text.late)
                return [text_or_pointer(args[0], path), str(args[1])]
            case "mremap" if not args[3] & 2:
                return [self._word(call, signature(name), i) for i in range(4)]
        return None

    def _fcntl(self, call: Call) -> list[str]:
        descriptor, command, argument = call.args[:3]
        words = [signed(descriptor), self._symbols.text("fcntl", command)]
        if command in _FCNTL_NO_ARGUMENT:
            return words
        if command == _FCNTL_OPEN:
            return [*words, self._symbols.text("open", argument)]
        if command == _FCNTL_FD:
            return [*words, self._symbols.text("fd_flags", argument)]
        return [*words, signed(argument) if argument < 1 << 16 else hex(argument)]

    def _clone(self, args: tuple[int, ...]) -> list[str]:
        """In strace's order, and with the names of what is there (clone(2))."""
        flags, stack, parent, child, tls = args[:5]
        words = [f"child_stack={pointer(stack)}", f"flags={self._symbols.text('clone', flags)}"]
        if flags & (0x100000 | 0x1000):  # CLONE_PARENT_SETTID, CLONE_PIDFD
            words.append(f"parent_tid={pointer(parent)}")
        if flags & 0x80000:  # CLONE_SETTLS
            words.append(f"tls={pointer(tls)}")
        if flags & (0x1000000 | 0x200000):  # CLONE_CHILD_SETTID, CLONE_CHILD_CLEARTID
            words.append(f"child_tidptr={pointer(child)}")
        return words

    def _word(self, call: Call, found: Signature, index: int) -> str:
        word, kind = call.args[index], found.kinds[index]
        text = call.texts.get(index)
        match kind:
            case "d":
                return signed(word)
            case "u":
                return str(word & 0xFFFFFFFF)
            case "l":
                return str(long(word, call.compat))
            case "size":
                return str(word)
            case "x":
                return "0" if not word else hex(word)
            case "mode":
                return f"0{word & 0xFFFFFFFF:o}" if word else "000"
            case "p":
                return pointer(word)
            case "path" | "str" | "in" | "out":
                return text_or_pointer(word, text)
            case "status":  # with WNOHANG nobody may have ended, and then nothing was written
                return wait_status(word, text if call.result else None)
            case "ints":
                return integers(word, text, found.sizes[index])
            case "addr":
                return socket_address(word, text)
        return self._symbols.text(kind, word)

    def _signal(self, event: SignalEvent) -> list[str]:
        """Who sent it stands behind it: the siginfo has no name, and may say anything. A process
        that dies of a signal has it once, though each of its threads takes one."""
        sent = self._senders.pop((event.tgid, event.signal), None)
        raw = event.info if event.info is not None or sent is None else sent.info
        info = siginfo.decode(raw) if raw is not None else None
        if raw is None or info is None:
            if sent is None:
                return []
            parts = ["si_code=SI_KERNEL"] if sent.by_kernel else ["si_code=SI_USER"]
        else:
            parts = siginfo_parts(raw, info)
        name = signal_name(event.signal)
        line = f"--- {name} {{{', '.join([f'si_signo={name}', *parts])}}} ---"
        if sent is None or sent.by_kernel:
            return [line]
        comm = quoted(os.fsencode(sent.sender_comm))
        return [f"{line} /* from pid {sent.sender_tgid}, {comm} */"]


def _remember(known: dict[_Key, _Kept], key: _Key, event: _Kept) -> None:
    """The oldest goes if there are too many: the end of a thread may have been lost."""
    known[key] = event
    if len(known) > _REMEMBERED:
        del known[next(iter(known))]


def ending(status: int) -> str:
    """What a wait status says: `exited with 3`, `killed by SIGSEGV (core dumped)`."""
    number = status & 0x7F
    if not number:
        return f"exited with {status >> 8 & 0xFF}"
    return f"killed by {signal_name(number)}" + (" (core dumped)" if status & 0x80 else "")
