"""Armed processes as BPF sees them: their threads as they leave, and processes that start.

The mirror of struct cw_armed* in bpf/coreward.h. A ring of its own: whatever else dies, there is
room for these. Also the mappings of an address space that outlives its process because it is
pinned: BPF walks them from the descriptor of /proc/PID/mem, for /proc has none of them any more.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import struct
import threading
import time
from pathlib import Path
from typing import NamedTuple, Self

from collector.arch.x86_64 import PAGE, Reg
from collector.errors import ProbeError
from collector.linux import libbpf
from collector.linux.bpfhash import HashMap
from collector.linux.procfs import TICK_NS
from collector.linux.ringbuf import Ring
from collector.model import ProcessKey
from collector.probe import pins
from collector.probe.iterators import THREAD

EVENT = struct.Struct("<IIQII")  # struct cw_armed_event
TOLD = struct.Struct("<II")  # struct cw_armed_thread behind its event
WORD = struct.Struct("<QII")  # struct cw_armed_word
WORDS = 8  # CW_ARMED_WORDS
ARMED = struct.Struct("<QII")  # struct cw_armed
WALK = struct.Struct("<IIIiQ4Q2Q8Q8I4Q")  # struct cw_armed_walk
TYPE_THREAD, TYPE_EXEC, TYPE_FORK = 1, 2, 3  # enum cw_armed_type
TELL_EXIT, FOLLOW_CHILDREN = 1, 2  # enum cw_armed_flag
NO_XSTATE, MORE_WORDS = 1, 2  # enum cw_armed_told
ARMING, LOAD_FPU = 2, 3  # enum cw_setting

_WORDS_AT = EVENT.size + TOLD.size
_THREAD_AT = _WORDS_AT + WORDS * WORD.size
_THREAD_HEAD = struct.Struct("<4I")  # size, tid, tgid and ns_tid of struct cw_thread
_REGS_AT = 128
_REGS = struct.Struct("<27q")
_SETTING = struct.Struct("<I")
_MODE_FLAGS = 0xFFFFFF00  # of thread_info.flags: all but TIF_NEED_RESCHED and its like
_NO_FD = (1 << 32) - 1
_LOAD_FPU_BEFORE_6_16 = 1 << 14
_LOOKS, _LOOK_S = 10, 0.005  # at a thread that goes to sleep
_AT_ONCE = 1024  # records
_BEGIN = [0] * (len(WALK.unpack(bytes(WALK.size))) - 1)
_READ = 64 << 10  # bytes; one reading of an iterator has half of it
_MOST_READINGS = 8192  # of one walk: 65,530 mappings with the longest paths take 2,000


class LeavingThread(NamedTuple):
    """A thread of an armed process, with its registers as it leaves."""

    key: ProcessKey
    tid: int
    ns_tid: int  # as it knows itself
    syscall: int  # that it was in; -1: none
    sp: int
    raw: bytes  # a record as those of the iterator `threads`
    words: tuple[tuple[int, bytes], ...]  # of memory, which its exit changes, as they were
    more_words: bool  # there are more of them
    ran: bool  # it was on a CPU, which has its floating-point registers


class Started(NamedTuple):
    """A process that an execve has made another one, or that an armed one has forked."""

    key: ProcessKey
    parent: int | None  # None: it was execve


class PinnedMemory(NamedTuple):
    """An address space that is pinned, as it is. Sizes are bytes, as far as they are counted."""

    mappings: memoryview  # raw records as those of the iterator `mappings`
    users: int  # of the address space; a pin is one
    private: int  # anonymous and shared memory, and swap
    resident: int


def decode(record: bytes) -> LeavingThread | Started:
    """One record of the ring. ProbeError if it is none of bpf/coreward.h."""
    if len(record) < EVENT.size:
        raise ProbeError(f"a record of {len(record)} bytes is too short")
    kind, size, start_ns, pid, parent = EVENT.unpack_from(record)
    key = ProcessKey(pid, start_ns)
    if size != len(record):
        raise ProbeError(f"a record of {len(record)} bytes claims {size}")
    if kind in (TYPE_EXEC, TYPE_FORK) and size == EVENT.size:
        return Started(key, parent if kind == TYPE_FORK else None)
    if kind != TYPE_THREAD or size < _THREAD_AT + THREAD.size:
        raise ProbeError(f"a record of type {kind} with {size} bytes")
    told, _ = TOLD.unpack_from(record, EVENT.size)
    words = WORD.iter_unpack(record[_WORDS_AT:_THREAD_AT])
    used, tid, _, ns_tid = _THREAD_HEAD.unpack_from(record, _THREAD_AT)
    if not THREAD.size <= used <= size - _THREAD_AT:
        raise ProbeError(f"thread {tid} claims {used} bytes of {size}")
    regs = _REGS.unpack_from(record, _THREAD_AT + _REGS_AT)
    return LeavingThread(
        key=key,
        tid=tid,
        ns_tid=ns_tid,
        syscall=regs[Reg.ORIG_RAX],
        sp=regs[Reg.RSP],
        raw=record[_THREAD_AT : _THREAD_AT + used],
        words=tuple((at, value.to_bytes(4, "little")) for at, value, _ in words if at),
        more_words=bool(told & MORE_WORDS),
        ran=bool(told & NO_XSTATE),
    )


class ArmedProbe:
    """The reader of the ring for armed processes, and who is armed. All methods are thread-safe."""

    def __init__(self, directory: Path) -> None:
        """directory: of a build's pins. ProbeError if the loader has no programs for it."""
        if not (directory / pins.WALK).exists():
            raise ProbeError("arming needs the loader `core`")
        self._lock = threading.Lock()
        self._ring = Ring(libbpf.get_pin(str(directory / "armed_ring")))
        self._armed = HashMap(libbpf.get_pin(str(directory / "armed")))
        self._walk = libbpf.get_pin(str(directory / pins.WALK))
        self._order = libbpf.get_pin(str(directory / pins.WALK_ORDER))
        self._settings = libbpf.get_pin(str(directory / "settings"))
        self.undecodable = 0
        self._set(LOAD_FPU, self._load_fpu())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._ring.close()
        self._armed.close()
        os.close(self._walk)
        os.close(self._order)
        os.close(self._settings)

    @property
    def armed_map(self) -> int:
        """Descriptor of the map of those that are armed: struct cw_armed by pid."""
        return self._armed.descriptor

    def fileno(self) -> int:
        """A descriptor for epoll(7), readable when records wait."""
        return self._ring.descriptor

    def drain(self) -> list[LeavingThread | Started]:
        """Records that wait, oldest first, at most so many that it does not take long."""
        found: list[LeavingThread | Started] = []
        with self._lock, contextlib.closing(self._ring.records()) as records:
            for record in itertools.islice(records, _AT_ONCE):
                try:
                    found.append(decode(record))
                except ProbeError:
                    self.undecodable += 1
        return found

    def _set(self, setting: int, value: int) -> None:
        libbpf.write_array(self._settings, setting, _SETTING.pack(value))

    def begin(self) -> None:
        """Processes are armed from now on: what starts is told, and the armed are looked up."""
        for name in list(self._armed):
            self._armed.remove(name)  # an earlier reader's: it holds their memory no more
        self._set(ARMING, 1)

    def end(self) -> None:
        """No process is armed any more; the programs look at one word, as before."""
        self._set(ARMING, 0)

    def arm(self, key: ProcessKey, flags: int) -> None:
        """From now on its threads are told as they leave."""
        self._armed.put(
            key.pid.to_bytes(4, "little"), ARMED.pack(key.start_ns // TICK_NS, flags, 0)
        )

    def disarm(self, key: ProcessKey) -> int:
        """They are not any more; how many could not be told."""
        name = key.pid.to_bytes(4, "little")
        value = self._armed.get(name)
        if value is None or ARMED.unpack(value)[0] != key.start_ns // TICK_NS:
            return 0
        self._armed.remove(name)
        return int(ARMED.unpack(value)[2])

    def walk(self, mem_fd: int) -> PinnedMemory:
        """The mappings of a pinned address space, by its /proc/PID/mem. Raises ProbeError.

        Nobody waits for it, and it waits for nobody: it takes no lock of the address space.
        """
        with self._lock:
            libbpf.write_array(self._order, 0, WALK.pack(mem_fd, *_BEGIN))
            parts: list[bytes] = []
            for _ in range(_MOST_READINGS):
                parts.append(self._read())
                _, _, done, users, _, files, anonymous, shared, swapped = WALK.unpack(
                    libbpf.read_array(self._order, 0, WALK.size)
                )[:9]
                if done:
                    raw = b"".join(parts)
                    if not raw:
                        raise ProbeError("its mappings could not be told")
                    private = (anonymous + shared + swapped) * PAGE
                    resident = (anonymous + shared + files) * PAGE
                    return PinnedMemory(memoryview(raw), users, private, resident)
        raise ProbeError("its mappings are more than can be told")

    def users(self, mem_fd: int) -> int:
        """Of an address space; a pin is one, and so is whoever looks at it in /proc just now."""
        with self._lock:
            return self._begun(mem_fd, os.getpid())[3]

    def _begun(self, mem_fd: int, thread: int) -> tuple[int, ...]:
        """What the beginning of a walk tells."""
        libbpf.write_array(self._order, 0, WALK.pack(mem_fd, 0, 1, *_BEGIN[2:]))
        self._read(thread)
        return WALK.unpack(libbpf.read_array(self._order, 0, WALK.size))

    def _load_fpu(self) -> int:
        """The bit of a thread's flags that says whether its XSAVE area is in memory.

        It has moved in 6.18, and BTF does not tell it. Since 6.16 a thread that sleeps has it, and
        no other one but those of work that waits, which are low; before, it gets it as it wakes.
        """
        asleep, end = threading.Event(), threading.Event()
        sleeper = threading.Thread(target=_sleep, args=(asleep, end), daemon=True)
        sleeper.start()
        asleep.wait()
        try:
            for _ in range(_LOOKS):
                flags = self._begun(_NO_FD, sleeper.native_id or 0)[4] & _MODE_FLAGS
                if flags and not flags & flags - 1:
                    return int(flags)
                time.sleep(_LOOK_S)
        finally:
            end.set()
            sleeper.join()
        return _LOAD_FPU_BEFORE_6_16

    def _read(self, thread: int | None = None) -> bytes:
        fd = libbpf.open_task_iterator(self._walk, thread or os.getpid(), single=True)
        try:
            return os.read(fd, _READ)
        except OSError as error:
            if error.errno == errno.EAGAIN:
                return b""
            raise ProbeError(f"its mappings cannot be told: {error.strerror}") from error
        finally:
            os.close(fd)


def _sleep(asleep: threading.Event, end: threading.Event) -> None:
    asleep.set()
    end.wait()
