"""What a process died of, in fields that can be counted and asked for: `Record.diagnosis`.

`explain.diagnose` makes it of what the record knows, `explain.reason` makes the sentence of it.
The names of the categories and the fields are a promise to other programs: one that changes its
meaning has a new `VERSION`. A fact that is not known is left out.
"""

from __future__ import annotations

import enum

import msgspec

VERSION = 1


class Access(enum.StrEnum):
    """What an instruction did to the address at which it faulted."""

    READ = "read"
    WRITE = "write"
    EXECUTE = "execute"


class Category(enum.StrEnum):
    """What kind of death it was."""

    # an address that cannot be used
    NULL_DEREFERENCE = "null-dereference"  # of address 0
    NEAR_NULL = "near-null"  # a small offset from a null pointer
    STACK_OVERFLOW = "stack-overflow"
    BAD_CALL = "bad-call"  # a call or jump to an address where nothing is
    UNMAPPED = "unmapped"  # nothing is mapped there
    USE_AFTER_UNMAP = "use-after-unmap"  # something was, until the process unmapped it
    FREED_MEMORY = "freed-memory"  # a pointer that comes from memory that was freed
    NON_CANONICAL = "non-canonical"  # no address at all for this CPU
    EXECUTE_DATA = "execute-data"  # mapped, but no code
    WRITE_READ_ONLY = "write-read-only"
    NO_ACCESS = "no-access"  # mapped, but for nobody: a guard page
    PROTECTION_KEY = "protection-key"
    PAST_END_OF_FILE = "past-end-of-file"  # of a file that is mapped further than it is long
    MISALIGNED = "misaligned"
    HARDWARE_MEMORY = "hardware-memory"  # defective memory
    CONTROL_FLOW = "control-flow"  # the CPU's protection of returns and calls
    # an instruction
    ILLEGAL_INSTRUCTION = "illegal-instruction"
    PRIVILEGED_INSTRUCTION = "privileged-instruction"
    DIVISION = "division"  # by zero, or with a result that does not fit
    ARITHMETIC = "arithmetic"
    TRAP = "trap"  # a breakpoint
    SECCOMP = "seccomp"  # a system call that its filter refuses
    REFUSED_CALL = "refused-call"  # a system call that is refused otherwise
    # the program gave up
    ASSERTION = "assertion"
    ABORT = "abort"
    UNCAUGHT_EXCEPTION = "uncaught-exception"  # of C++
    RUST_PANIC = "rust-panic"
    GO_PANIC = "go-panic"
    PYTHON_EXCEPTION = "python-exception"
    HEAP_CORRUPTION = "heap-corruption"  # as the allocator reports it
    BUFFER_OVERFLOW = "buffer-overflow"  # as the compiler's checks report it
    RAISED = "raised"  # another signal that the process sent itself
    EXIT_STATUS = "exit-status"
    # others ended it
    KILLED = "killed"
    WATCHDOG = "watchdog"  # systemd's: its unit did not report in time
    OUT_OF_MEMORY = "out-of-memory"
    CPU_LIMIT = "cpu-limit"
    FILE_SIZE_LIMIT = "file-size-limit"
    BROKEN_PIPE = "broken-pipe"
    TIMER = "timer"
    TERMINAL = "terminal"
    EXEC_FAILED = "exec-failed"
    KERNEL = "kernel"  # another signal of the kernel's own
    UNKNOWN = "unknown"


class Confidence(enum.StrEnum):
    """How far the category may be relied on."""

    CERTAIN = "certain"  # the kernel, the CPU or the program itself says so
    LIKELY = "likely"  # what is known fits nothing else that is usual
    GUESS = "guess"  # it fits best


class Instruction(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The instruction at which a thread died."""

    bytes: str  # hexadecimal; as many as it has, or as could be read
    text: str | None = None  # in the notation of AT&T


class Mapping(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A part of the address space [start, end)."""

    start: int
    end: int
    permissions: str  # as in /proc/PID/maps: `rw-`
    name: str | None = None  # a file, `[heap]`, `[stack]`
    distance: int | None = None  # of a neighbour: bytes between it and the address


class Evidence(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the category rests on."""

    signal: int | None = None  # of the fault, where a handler caught it first
    address: int | None = None
    access: Access | None = None
    offset: int | None = None  # of `near-null`: from 0, may be negative
    handled: bool = False  # a handler of the process caught it, and raised the signal again
    ip: int | None = None
    instruction: Instruction | None = None
    mapping: Mapping | None = None  # what holds the address
    below: Mapping | None = None  # else its neighbours
    above: Mapping | None = None
    null_registers: list[str] = []
    stack: Mapping | None = None  # what the stack pointer is in
    sp_in_stack: bool | None = None
    thread: str | None = None  # its name
    tid: int | None = None
    message: str | None = None  # what the program, or its C library, said
    exception: str | None = None  # the type of what was thrown, and was not caught, or is handled
    what: str | None = None  # and its text
    syscall: int | None = None
    exit_code: int | None = None
    by: str | None = None  # of `killed`: in which way; the names are those of `killer.by`
    pid: int | None = None  # and by whom
    comm: str | None = None
    uid: int | None = None
    unit_result: str | None = None  # what systemd says of the unit whose process it killed
    cgroup: str | None = None  # what ran out of memory; sizes in bytes
    limit: int | None = None
    usage: int | None = None
    resident: int | None = None


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """What a process died of."""

    version: int = VERSION
    category: Category = Category.UNKNOWN
    confidence: Confidence = Confidence.GUESS
    evidence: Evidence = Evidence()
