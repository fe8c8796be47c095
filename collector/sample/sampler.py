"""Take samples of one process into a ring, and have their stacks unwound when there is time.

Sampling costs the process nothing but the copies of its stacks: no signal, no ptrace, no stop. The
agent can keep a `Sampler` for as long as the process lives; nothing heavy is loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import struct
import time
from collections.abc import Mapping
from typing import Self

import msgspec

from collector.arch.x86_64 import CODE_32_BIT, NO_32_BIT_CODE, PAGE
from collector.errors import ProcessError, ProcessGone
from collector.explain.run import unwind_stacks
from collector.explain.types import StackImage
from collector.introspect import Process, Registers, ThreadState
from collector.model import Frame
from collector.sample.group import is_outermost
from collector.sample.ring import SampleRing
from collector.sample.types import KeptStack, Sample, ThreadSample
from collector.sample.unwind_context import UnwindContext, code_of

STACK = 16 << 10  # bytes of each stack
_CHANNELS = 64  # threads of one sample that /proc is asked about
_LOOK_EVERY = 10  # samples between two looks at the mappings
_OLD_CONTEXTS = 8  # unwind contexts of earlier mappings that are kept besides the present one
_UNKNOWN_PAGES = 4096  # pages that are remembered as looked into
_IDLE = "I"  # so threads wait while their process dumps core, and hardly any others
_UNWOUND_FROM = struct.Struct("<8Q")  # the registers that a backtrace depends on


class Backtraces(msgspec.Struct, frozen=True, kw_only=True):
    """The frames of stacks by their keys, innermost first; and what could not be had."""

    frames: Mapping[bytes, tuple[Frame, ...]]
    lost: dict[str, str] = {}


class Sampler:
    """See the module. A context manager; the process stays the caller's."""

    def __init__(self, process: Process, ring: SampleRing, stack: int = STACK) -> None:
        self.process = process
        self.ring = ring
        self._stack = stack
        self._contexts: dict[int, UnwindContext] = {}  # by number; the last one is of now
        self._made = 0  # contexts so far
        self._seen: dict[int, tuple[object, bytes]] = {}  # by tid: what tells a run, and its stack
        self._unknown: set[int] = set()  # pages without known code that were looked into
        self._taken = 0
        self._blind = False
        self.lost: dict[str, str] = {}
        if process.no_bpf is not None:
            self.lost["registers"] = (
                f"they come from BPF: {process.no_bpf}. Stacks of running threads are missing, "
                "others may end early"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        while self._contexts:
            self._contexts.popitem()[1].close()

    def go_blind(self, why: str) -> None:
        """From now on take states and registers alone; a sample in progress is discarded."""
        self._blind, self._stack = True, 0
        self.lost["later stacks"] = why

    def take(self) -> Sample:
        """One sample, appended to the ring. ProcessGone when the process has ended, or dies."""
        blind = self._blind
        began = time.monotonic_ns()
        threads = self.process.threads(stack=self._stack)
        if any(t.state == _IDLE for t in threads) and self.process.is_dying:
            raise ProcessGone(f"process {self.process.pid} is dying")
        took = time.monotonic_ns() - began
        if not blind:
            self._look(threads)
        stacks: dict[bytes, KeptStack] = {}
        asked = 0
        found = []
        for thread in threads:
            channel = None
            if asked < _CHANNELS and _needs_channel(thread):
                asked += 1
                channel = self.process.wait_channel(thread.tid)
            found.append(_sampled(thread, channel, self._kept(thread, stacks)))
        if len(self._seen) > 2 * len(threads):
            self._seen = {t.tid: self._seen[t.tid] for t in threads if t.tid in self._seen}
        if blind != self._blind:
            raise ProcessError(f"process {self.process.pid} was given up meanwhile")
        sample = Sample(time_ns=began, took_ns=took, threads=tuple(found))
        self.ring.add(sample, stacks)
        self._taken += 1
        return sample

    def _kept(self, thread: ThreadState, stacks: dict[bytes, KeptStack]) -> bytes | None:
        r = thread.registers or _registers(thread)
        if thread.stack is None or r is None or not self._contexts:
            return None
        if r.cs == CODE_32_BIT:
            self.lost["stacks of 32-bit code"] = NO_32_BIT_CODE
            return None
        context = self._made - 1
        seen = (
            thread.start_ns,
            thread.voluntary,
            thread.involuntary,
            thread.ip,
            thread.sp,
            context,
        )
        before = self._seen.get(thread.tid)
        told = thread.voluntary is not None and thread.involuntary is not None
        if told and before is not None and before[0] == seen and not thread.on_cpu:
            known = self.ring.stacks.get(before[1])
            if known is not None:  # it has not run since: its stack is the same
                stacks[before[1]] = known
                return before[1]
        key = self._key(thread.stack.data, r, context)
        stacks[key] = KeptStack(context, tuple(r), thread.stack.address, thread.stack.data)
        self._seen[thread.tid] = seen, key
        return key

    @staticmethod
    def _key(data: bytes, r: Registers, context: int) -> bytes:
        digest = hashlib.blake2b(context.to_bytes(4, "little"), digest_size=16)
        digest.update(_UNWOUND_FROM.pack(r.rip, r.rsp, r.rbp, r.rbx, r.r12, r.r13, r.r14, r.r15))
        digest.update(data)
        return digest.digest()

    def _look(self, threads: list[ThreadState]) -> None:
        """Look at the mappings now and then, and when a thread is where no code was."""
        due = self._taken % _LOOK_EVERY == 0
        pages = {t.ip // PAGE for t in threads if t.exact and t.ip} - self._unknown
        context = self._contexts.get(self._made - 1)
        unknown = {page for page in pages if context and not context.holds(page * PAGE)}
        if len(self._unknown) > _UNKNOWN_PAGES:
            self._unknown.clear()
        self._unknown |= unknown
        if due or unknown:
            self.refresh()

    def refresh(self) -> None:
        """Take note of code that was mapped since; what cannot be had is named in `lost`."""
        if self._blind:
            return
        last = self._contexts.get(self._made - 1)
        try:
            if last is not None and code_of(self.process.mappings()) == last.code:
                return
            context = UnwindContext(self.process)
        except ProcessError as error:
            if last is None:
                self.lost["stacks"] = str(error)
            return
        if last is not None and last.code <= context.code:
            last.close()  # more was loaded: what was there means the same
        else:
            self._made += 1
        self._contexts[self._made - 1] = context
        self._forget_grounds()

    def _forget_grounds(self) -> None:
        """Close those that no stack stands on any more, and the oldest of too many."""
        used = {kept.context for kept in self.ring.stacks.values()}
        old = [number for number in self._contexts if number < self._made - 1]
        for position, number in enumerate(old):
            if number not in used or position < len(old) - _OLD_CONTEXTS:
                if number in used:
                    self.lost["old stacks"] = "the process has changed its code too often"
                self._contexts.pop(number).close()

    @property
    def ground_fds(self) -> dict[int, int]:
        """Small cores of the mappings that stacks in the ring stand on, by their numbers."""
        return {number: context.core_fd for number, context in self._contexts.items()}

    def backtraces(self, timeout: float = 60.0, *, nice: int = 0) -> Backtraces:
        """Unwind every distinct stack in the ring, in a process of its own (see explain.run).

        nice: how much that process yields to others; 19 if nobody waits.
        """
        self.refresh()
        frames: dict[bytes, tuple[Frame, ...]] = {}
        lost: dict[str, str] = {}
        for number, context in self._contexts.items():
            keys = [key for key, kept in self.ring.stacks.items() if kept.context == number]
            if not keys:
                continue
            kept = [self.ring.stack(key) for key in keys]
            found = unwind_stacks(
                context.core_fd,
                [StackImage(k.regs, k.address, k.data) for k in kept],
                exe=context.exe_fd,
                root_fd=context.root_fd,
                timeout=timeout,
                nice=nice,
            )
            lost.update(found.lost)
            for key, numbers in zip(keys, found.stacks, strict=True):
                if numbers:
                    frames[key] = tuple(found.frames[n] for n in numbers)
        cut = sum(self._is_cut(self.ring.stack(key), frames[key][-1]) for key in frames)
        if cut:
            lost["outermost frames"] = (
                f"{cut} of {len(frames)} stacks are larger than {self._stack} bytes (--stack)"
            )
        return Backtraces(frames=frames, lost=lost)

    def _is_cut(self, kept: KeptStack, last: Frame) -> bool:
        return len(kept.data) >= self._stack and not is_outermost(last)


def _needs_channel(thread: ThreadState) -> bool:
    """Whether the system call does not say why it sleeps."""
    return thread.state == "D" or (thread.state in "SI" and thread.syscall is None)


def _registers(thread: ThreadState) -> Registers | None:
    """The two that /proc tells of a sleeping thread: enough for frames that need no others."""
    if thread.ip is None or thread.sp is None:
        return None
    return Registers(*(0,) * len(Registers._fields))._replace(rip=thread.ip, rsp=thread.sp)


def _sampled(thread: ThreadState, channel: str | None, stack: bytes | None) -> ThreadSample:
    call = thread.syscall
    switches = None
    with contextlib.suppress(TypeError):
        switches = thread.voluntary + thread.involuntary  # type: ignore[operator]
    return ThreadSample(
        tid=thread.tid,
        name=thread.name,
        start_ns=thread.start_ns,
        state=thread.state,
        runtime_ns=thread.runtime_ns,
        switches=switches,
        syscall=None if call is None else call.name or f"syscall {call.number}",
        wait_channel=channel,
        stack=stack,
    )
