"""Events in strace's notation."""

from __future__ import annotations

import signal
import struct

import pytest

from collector.trace.layout import (
    Call,
    CallEvent,
    ExecEvent,
    ExitEvent,
    SentEvent,
    SignalEvent,
    Text,
)
from collector.trace.notation import Notation, ending
from collector.trace.values import quoted
from tests.unit.trace_samples import SYMBOLS, call

HEAD = {"time_ns": 1, "tid": 10, "tgid": 10, "lost": 0, "rule": 1}
MINUS_ONE = 2**64 - 1


@pytest.mark.parametrize(
    ("made", "shown"),
    [
        (
            call("openat", -100, 0x7F00, 0o2000000, result=3, texts={1: Text(b"/etc/passwd")}),
            'openat(AT_FDCWD, "/etc/passwd", O_RDONLY|O_CLOEXEC) = 3',
        ),
        (
            call("openat", -100, 0x7F00, 0o102, 0o644, result=3, texts={1: Text(b"new")}),
            'openat(AT_FDCWD, "new", O_RDWR|O_CREAT, 0644) = 3',
        ),
        (
            call("openat", 5, 0x7F00, 0o4010001, result=-2),
            "openat(5, 0x7f00, O_WRONLY|O_SYNC) = -1 ENOENT (No such file or directory)",
        ),
        (
            call("read", 0, 0x7F00, 100, result=4, texts={1: Text(b"a\n\x001", cut=True)}),
            'read(0, "a\\n\\0001"..., 100) = 4',
        ),
        (call("read", 0, 0x7F00, 100, result=None), "read(0, 0x7f00, 100) = ?"),
        (
            call("read", 0, 0x7F00, 100, result=-512),
            "read(0, 0x7f00, 100) = ? ERESTARTSYS (To be restarted if SA_RESTART is set)",
        ),
        (
            call("mmap", 0, 8192, 3, 0x22, -1, 0, result=0x7F0000001000),
            "mmap(NULL, 8192, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0)"
            " = 0x7f0000001000",
        ),
        (
            call("mmap", 0, 8192, 0, 0x2, 3, 0x1000, result=-4),
            "mmap(NULL, 8192, PROT_NONE, MAP_PRIVATE, 3, 0x1000)"
            " = -1 EINTR (Interrupted system call)",
        ),
        (call("brk", 0, result=0x5000), "brk(NULL) = 0x5000"),
        (call("umask", 0o77, result=0o22), "umask(077) = 022"),
        (call("lseek", 3, -1, 9, result=0), "lseek(3, -1, 9) = 0"),
        (call("futex", 0x10, 0x81, 1, result=1), "futex(0x10, FUTEX_WAKE_PRIVATE, 1) = 1"),
        (
            call("futex", 0x10, 0x189, 2, 0, 0, 0xFFFFFFFF),
            "futex(0x10, FUTEX_WAIT_BITSET_PRIVATE|FUTEX_CLOCK_REALTIME, 2, NULL, "
            "FUTEX_BITSET_MATCH_ANY) = 0",
        ),
        (call("fcntl", 3, 2, 1), "fcntl(3, F_SETFD, FD_CLOEXEC) = 0"),
        (call("fcntl", 3, 1, 99, result=1), "fcntl(3, F_GETFD) = 0x1 (flags FD_CLOEXEC)"),
        (call("fcntl", 3, 4, 0o4002), "fcntl(3, F_SETFL, O_RDWR|O_NONBLOCK) = 0"),
        (
            call("clone", 0x1000011, 0, 0, 0x7F10, 0, result=99),
            "clone(child_stack=NULL, flags=CLONE_CHILD_SETTID|SIGCHLD, child_tidptr=0x7f10) = 99",
        ),
        (
            call("pipe2", 0x7F00, 0o2000000, texts={0: Text(struct.pack("<ii", 3, 4))}),
            "pipe2([3, 4], O_CLOEXEC) = 0",
        ),
        (call("pipe2", 0x7F00, 0), "pipe2(0x7f00, 0) = 0"),
        (
            call("wait4", -1, 0x7F00, 1, 0, result=7, texts={1: Text(struct.pack("<i", 0x100))}),
            "wait4(-1, [{WIFEXITED(s) && WEXITSTATUS(s) == 1}], WNOHANG, NULL) = 7",
        ),
        (
            call("wait4", -1, 0x7F00, 1, 0, result=0, texts={1: Text(bytes(4))}),
            "wait4(-1, 0x7f00, WNOHANG, NULL) = 0",
        ),
        (
            call("futex", 0x10, 0x8A, 2, 0, 0, 5),
            "futex(0x10, FUTEX_WAKE_BITSET_PRIVATE, 2, 0x5) = 0",
        ),
        (call("fcntl", 3, 3, 99, result=2), "fcntl(3, F_GETFL) = 0x2 (flags O_RDWR)"),
        (call("fcntl", 3, 1, 99, result=0), "fcntl(3, F_GETFD) = 0"),
        (
            call("accept4", 3, 0, 0, 0o2004000, result=4),
            "accept4(3, NULL, NULL, SOCK_NONBLOCK|SOCK_CLOEXEC) = 4",
        ),
        (
            call("setsockopt", 3, 1, 2, 0x7F00, 4, texts={3: Text(b"\1\0\0\0")}),
            'setsockopt(3, SOL_SOCKET, SO_REUSEADDR, "\\1\\0\\0\\0", 4) = 0',
        ),
        (call("getsockopt", 3, 6, 1, 0, 0), "getsockopt(3, SOL_TCP, TCP_NODELAY, NULL, NULL) = 0"),
        (
            call("getcwd", 0x7F00, 99, result=5, texts={0: Text(b"/tmp\0")}),
            'getcwd("/tmp", 99) = 5',
        ),
        (call("kill", 7, 15), "kill(7, SIGTERM) = 0"),
        (call("socket", 1, 0x80001, 0), "socket(AF_UNIX, SOCK_STREAM|SOCK_CLOEXEC, 0) = 0"),
        (
            call("connect", 3, 0x7F00, 11, texts={1: Text(b"\x01\0/run/sock\0")}),
            'connect(3, {sa_family=AF_UNIX, sun_path="/run/sock"}, 11) = 0',
        ),
        (
            call("connect", 3, 0x7F00, 16, texts={1: Text(b"\x02\0\0P\x7f\0\0\x01" + bytes(8))}),
            'connect(3, {sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr("127.0.0.1")}'
            ", 16) = 0",
        ),
        (call("access", 0x10, 0, texts={0: Text(b"x")}), 'access("x", F_OK) = 0'),
        (call("close", -1, result=-9), "close(-1) = -1 errno 9 (Bad file descriptor)"),
        (call("4", 1, 0x100, 5, compat=True, result=5), "write(1, 0x100, 5) = 5"),
        (
            Call(number=499, args=(1, 0, 2, 3, 4, 5), result=-38, enter_ns=1, exit_ns=2),
            "syscall_0x1f3(0x1, 0, 0x2, 0x3, 0x4, 0x5) = -1 errno 38 (Function not implemented)",
        ),
    ],
)  # fmt: skip
def test_calls(made: Call, shown: str) -> None:
    assert Notation(SYMBOLS).call(made) == shown


def test_without_a_table_numbers_stay_numbers() -> None:
    from collector.trace.symbols import Symbols  # noqa: PLC0415

    made = call("openat", -100, 0x7F00, 0o2000000, result=3)
    assert Notation(Symbols()).call(made) == "openat(-100, 0x7f00, 0x80000) = 3"


def test_nothing_of_a_hostile_text_reaches_the_terminal() -> None:
    text = '\x1b]0;owned\x07\n\r\t"\\\u202e'.encode() + b"\xff1"
    shown = quoted(text)
    assert shown.isascii()
    assert shown.isprintable()
    assert shown.startswith('"\\33]0;owned\\7\\n\\r\\t\\"\\\\\\342\\200\\256\\3771')


def test_a_command_line_is_that_of_the_program() -> None:
    # GIVEN an execve whose new program was seen before it returned
    notation = Notation(SYMBOLS)
    became = ExecEvent(**HEAD, old_tid=10, path=b"/bin/ls", arguments=(b"ls", b"-l\n"), cut=True)
    assert notation.lines(became) == []
    made = call("execve", 0x1, 0x2, 0x3, texts={0: Text(None)})
    # THEN it is shown with it, once
    event = CallEvent(**HEAD, call=made)
    assert notation.lines(event) == ['execve("/bin/ls", ["ls", "-l\\n"...], 0x3) = 0']
    assert notation.lines(event) == ["execve(0x1, 0x2, 0x3) = 0"]


def test_an_execve_of_another_thread_than_the_first() -> None:
    became = ExecEvent(**HEAD, old_tid=12, path=b"", arguments=(), cut=False)
    assert Notation(SYMBOLS).lines(became) == ["+++ superseded by execve in pid 12 +++"]


def siginfo(number: int, code: int, *words: int) -> bytes:
    return struct.pack("<iiii", number, 0, code, 0) + struct.pack(f"<{len(words)}I", *words).ljust(
        32, b"\0"
    )


@pytest.mark.parametrize(
    ("number", "info", "shown"),
    [
        (17, siginfo(17, 1, 7, 0, 3), "--- SIGCHLD {si_signo=SIGCHLD, si_code=CLD_EXITED, "
         "si_pid=7, si_uid=0, si_status=3} ---"),
        (17, siginfo(17, 2, 7, 0, 9), "--- SIGCHLD {si_signo=SIGCHLD, si_code=CLD_KILLED, "
         "si_pid=7, si_uid=0, si_status=SIGKILL} ---"),
        (11, siginfo(11, 1, 16, 0), "--- SIGSEGV {si_signo=SIGSEGV, si_code=SEGV_MAPERR, "
         "si_addr=0x10} ---"),
        (10, siginfo(10, 0, 5, 1000), "--- SIGUSR1 {si_signo=SIGUSR1, si_code=SI_USER, si_pid=5, "
         "si_uid=1000} ---"),
    ],
)  # fmt: skip
def test_signals(number: int, info: bytes, shown: str) -> None:
    event = SignalEvent(**HEAD, signal=number, handler=0, info=info)
    assert Notation(SYMBOLS).lines(event) == [shown]


def test_a_signal_names_its_sender_once() -> None:
    # GIVEN a fatal SIGTERM: the kernel gives each thread a SIGKILL without siginfo
    notation = Notation(SYMBOLS)
    sent = SentEvent(
        **HEAD,
        signal=15,
        result=0,
        sender_tgid=5,
        sender_tid=5,
        sender_uid=0,
        by_kernel=False,
        sender_comm="ki\nll",
        info=siginfo(15, 0, 5, 0),
    )
    taken = SignalEvent(**HEAD, signal=signal.SIGTERM, handler=0, info=None)
    # WHEN its threads take it THEN one line says who it was
    assert notation.lines(sent) == []
    assert notation.lines(taken) == [
        "--- SIGTERM {si_signo=SIGTERM, si_code=SI_USER, si_pid=5, si_uid=0} ---"
        ' /* from pid 5, "ki\\nll" */'
    ]
    assert notation.lines(taken) == []


def test_what_was_lost_stands_where_it_was_lost() -> None:
    event = CallEvent(**(HEAD | {"lost": 7}), call=call("getpid", result=10))
    assert Notation(SYMBOLS).lines(event) == [
        "--- 7 events of this thread were lost here ---",
        "getpid() = 10",
    ]


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        (0, "exited with 0"),
        (0x300, "exited with 3"),
        (9, "killed by SIGKILL"),
        (0x8B, "killed by SIGSEGV (core dumped)"),
    ],
)
def test_ends(status: int, shown: str) -> None:
    event = ExitEvent(**HEAD, made=1, lost_calls=0, status=status, last=True)
    assert ending(status) == shown
    assert Notation(SYMBOLS).lines(event) == [f"+++ {shown} +++"]
