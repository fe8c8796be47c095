"""What the si_code of a signal means, in words.

Pure tables; the numbers are those of x86-64 Linux: signals from signal(7), codes from
<asm-generic/siginfo.h>.
"""

from __future__ import annotations

import signal as _signal

from collector.model import KilledBy

# si_code of any signal
SI_USER = 0  # kill(2)
SI_TIMER = -2
SI_TKILL = -6  # tgkill(2): raise(3), abort(3)

# si_code of SIGSEGV
SEGV_MAPERR = 1
SEGV_ACCERR = 2
SEGV_BNDERR = 3
SEGV_PKUERR = 4
SEGV_CPERR = 10

# si_code of SIGBUS
BUS_ADRALN = 1
BUS_ADRERR = 2
BUS_OBJERR = 3
BUS_MCEERR_AR = 4
BUS_MCEERR_AO = 5

SYS_SECCOMP = 1  # si_code of SIGSYS

_CODES: dict[int, dict[int, str]] = {
    _signal.SIGSEGV: {
        1: "SEGV_MAPERR",
        2: "SEGV_ACCERR",
        3: "SEGV_BNDERR",
        4: "SEGV_PKUERR",
        5: "SEGV_ACCADI",
        6: "SEGV_ADIDERR",
        7: "SEGV_ADIPERR",
        8: "SEGV_MTEAERR",
        9: "SEGV_MTESERR",
        10: "SEGV_CPERR",
    },
    _signal.SIGBUS: {
        1: "BUS_ADRALN",
        2: "BUS_ADRERR",
        3: "BUS_OBJERR",
        4: "BUS_MCEERR_AR",
        5: "BUS_MCEERR_AO",
    },
    _signal.SIGFPE: {
        1: "FPE_INTDIV",
        2: "FPE_INTOVF",
        3: "FPE_FLTDIV",
        4: "FPE_FLTOVF",
        5: "FPE_FLTUND",
        6: "FPE_FLTRES",
        7: "FPE_FLTINV",
        8: "FPE_FLTSUB",
        14: "FPE_FLTUNK",
        15: "FPE_CONDTRAP",
    },
    _signal.SIGILL: {
        1: "ILL_ILLOPC",
        2: "ILL_ILLOPN",
        3: "ILL_ILLADR",
        4: "ILL_ILLTRP",
        5: "ILL_PRVOPC",
        6: "ILL_PRVREG",
        7: "ILL_COPROC",
        8: "ILL_BADSTK",
        9: "ILL_BADIADDR",
    },
    _signal.SIGTRAP: {
        1: "TRAP_BRKPT",
        2: "TRAP_TRACE",
        3: "TRAP_BRANCH",
        4: "TRAP_HWBKPT",
        5: "TRAP_UNK",
        6: "TRAP_PERF",
    },
    _signal.SIGCHLD: {
        1: "CLD_EXITED",
        2: "CLD_KILLED",
        3: "CLD_DUMPED",
        4: "CLD_TRAPPED",
        5: "CLD_STOPPED",
        6: "CLD_CONTINUED",
    },
    _signal.SIGSYS: {1: "SYS_SECCOMP", 2: "SYS_USER_DISPATCH"},
}
_COMMON = {
    0: "SI_USER",
    0x80: "SI_KERNEL",
    -1: "SI_QUEUE",
    -2: "SI_TIMER",
    -3: "SI_MESGQ",
    -4: "SI_ASYNCIO",
    -5: "SI_SIGIO",
    -6: "SI_TKILL",
    -7: "SI_DETHREAD",
    -60: "SI_ASYNCNL",
}

ARITHMETIC = {
    1: "integer divide by zero",
    2: "integer overflow",
    3: "floating-point divide by zero",
    4: "floating-point overflow",
    5: "floating-point underflow",
    6: "inexact floating-point result",
    7: "invalid floating-point operation",
    8: "subscript out of range",
}

# What the kernel means when it sends one of these on its own account (si_code SI_KERNEL).
FROM_KERNEL = {
    int(_signal.SIGPIPE): "wrote to a pipe or socket that nobody reads",
    int(_signal.SIGALRM): "its timer expired",
    int(_signal.SIGVTALRM): "its virtual timer expired",
    int(_signal.SIGPROF): "its profiling timer expired",
    int(_signal.SIGXCPU): "its limit on CPU time was reached",
    int(_signal.SIGXFSZ): "its limit on file size was reached",
    int(_signal.SIGHUP): "its terminal was closed",
    int(_signal.SIGINT): "interrupted from its terminal",
    int(_signal.SIGQUIT): "told to quit from its terminal",
    int(_signal.SIGIO): "input or output became possible",
}


def code_name(signal: int, code: int) -> str | None:
    """The name of a si_code, such as `SEGV_MAPERR`; None if it has none."""
    return _COMMON.get(code) or _CODES.get(signal, {}).get(code)


# Of a fatal signal that no process sent, by what part of the kernel it came about.
KILLED_BY = {
    KilledBy.PARENT_DEATH: "its parent ended, as PR_SET_PDEATHSIG asks for",
    KilledBy.NAMESPACE: "the first process of its pid namespace ended",
    KilledBy.TRACER: "its tracer ended, as PTRACE_O_EXITKILL asks for",
    KilledBy.CPU_LIMIT: "its limit on CPU time was reached (RLIMIT_CPU)",
    KilledBy.RT_LIMIT: "it ran in real time for too long without a pause (RLIMIT_RTTIME)",
    KilledBy.EXEC: "execve() failed when the program before was gone already",
}

# What systemd calls the end of a unit: `Result` in systemd.service(5), $SERVICE_RESULT.
UNIT_RESULTS = {
    "timeout": "a timeout of the unit passed",
    "watchdog": "the unit did not report to its watchdog in time",
    "oom-kill": "the out-of-memory killer had been at work in the unit",
    "success": "the unit was stopped",
}
