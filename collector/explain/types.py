"""What explaining a core yields. Pure values, shared by the agent and the child that makes them."""

from __future__ import annotations

import msgspec

from collector.circumstances import ManagedRuntime, Package
from collector.diagnosis import Diagnosis
from collector.model import Access, Frame, Goroutines
from collector.signature.types import StackKey

MAX_FRAMES = 256  # of one thread; the innermost are kept
MAX_MODULES = 4096
MAX_NAME = 1024  # characters of a function, a file, a path
MAX_MESSAGE = 1024  # characters of what the C library said
MAX_DOCUMENT = 4 << 20  # bytes of an encoded Explanation
MAX_FULL_DOCUMENT = 16 << 20  # bytes of one with variables
MAX_STACKS_DOCUMENT = 16 << 20  # bytes of encoded UnwoundStacks


class Variable(msgspec.Struct, frozen=True, kw_only=True):
    """An argument or a local variable. `lost`: why its value is not known."""

    name: str
    type: str | None = None
    value: str | None = None
    lost: str | None = None


class FrameValues(msgspec.Struct, frozen=True, kw_only=True):
    """The variables of one frame, by its number in the backtrace."""

    frame: int
    variables: list[Variable]


class Pointer(msgspec.Struct, frozen=True, kw_only=True):
    """A register, and what lies where it points to. None: there is no such thing, or no memory."""

    register: str
    value: int
    mapping: str | None = None  # its addresses and permissions
    file: str | None = None  # that is mapped there
    symbol: str | None = None
    string: str | None = None  # the text there
    before: str | None = None  # bytes before it, hexadecimal
    after: str | None = None  # and from there on


class ThreadFrames(msgspec.Struct, frozen=True, kw_only=True):
    """One thread's backtrace, innermost first. `lost` says why frames are missing, if they are."""

    tid: int
    frames: list[Frame]
    name: str | None = None  # as the thread itself is called
    lost: str | None = None
    values: list[FrameValues] = []  # only if asked for
    registers: list[Pointer] = []  # of the innermost frame; only if asked for


class ModuleFile(msgspec.Struct, frozen=True, kw_only=True):
    """An object that was mapped into the process, and whether its file could be used.

    `verified`: the core holds the build-id, and the file has the same.
    """

    path: str
    start: int | None
    end: int | None
    build_id: str | None
    found: bool
    debug: bool  # debugging information was read, from it or from a separate file
    verified: bool
    why: str | None = None  # why its file was not used


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """All that a core says about where its process died. None: see `lost`."""

    frames: list[Frame] | None = None  # of the dying thread
    stack: StackKey | None = None  # what its signature takes from them; only if asked for
    threads: list[ThreadFrames] | None = None  # only if asked for
    goroutines: Goroutines | None = None
    modules: list[ModuleFile] = []
    abort_message: str | None = None
    fault_access: Access | None = None
    diagnosis: Diagnosis | None = None  # its beginning: what the core alone says of the fault
    package: Package | None = None  # of the main program
    runtime: ManagedRuntime | None = None
    report: str | None = None  # the text of what `runtime.report` names
    seconds: float = 0.0  # wall-clock time that it took
    peak_rss: int = 0  # bytes
    lost: dict[str, str] = {}


class StackImage(msgspec.Struct, frozen=True, array_like=True):
    """A copied piece of a thread's stack, and the registers that belong to it."""

    regs: tuple[int, ...]  # at least the first 21 words of struct user_regs_struct
    address: int
    data: bytes


class UnwoundStacks(msgspec.Struct, frozen=True, kw_only=True):
    """Backtraces of many stacks, innermost first, as numbers of the frames that they share."""

    frames: list[Frame]
    stacks: list[list[int]]  # one for each StackImage, in their order
    lost: dict[str, str] = {}

    def is_whole(self) -> bool:
        """Whether every number is one of a frame."""
        return all(0 <= number < len(self.frames) for stack in self.stacks for number in stack)
