"""The pin: another process's memory stays readable after that process is gone."""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.errors import HoldError
from collector.handoff import pin
from collector.handoff.pin import Pin
from tests.system.victims import PATIENCE

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

SIZE = 32 << 20
_TARGET = f"""
import ctypes, mmap, sys
memory = mmap.mmap(-1, {SIZE}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory[:] = bytes(range(256)) * ({SIZE} // 256)
print(ctypes.addressof(ctypes.c_char.from_buffer(memory)), flush=True)
sys.stdin.read()
"""

# Pins the process named by its arguments, says so, and waits to be killed.
_PINNER = """
import os, signal, sys
from collector.handoff.pin import Pin
fd = os.open(f"/proc/{sys.argv[1]}/mem", os.O_RDONLY)
pin = Pin(fd, int(sys.argv[2]), timeout_ms=60_000)
print("pinned", flush=True)
signal.pause()
"""


def pinned(mem: int, address: int) -> Pin:
    """A pin however busy the machine is; the product's own patience is for those who wait."""
    return Pin(mem, address, timeout_ms=int(PATIENCE * 1000))


class Target:
    """A process with known memory at `address`."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", _TARGET], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        self.address = int(self.process.stdout.readline())
        self.mem = os.open(f"/proc/{self.process.pid}/mem", os.O_RDONLY)

    def kill(self) -> None:
        """Kill it, and reap it."""
        self.process.kill()
        self.process.wait()

    def read(self) -> bytes:
        return os.pread(self.mem, SIZE, self.address)

    def close(self) -> None:
        self.kill()
        os.close(self.mem)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def target() -> Iterator[Target]:
    with contextlib.closing(Target()) as process:
        yield process


def test_memory_outlives_the_process_until_release(target: Target) -> None:
    """
    GIVEN a pinned process
    WHEN it is killed and reaped
    THEN all of its memory can be read by the old descriptor until the pin is released, not after
    """
    expected = bytes(range(256)) * (SIZE // 256)
    with pinned(target.mem, target.address) as held:
        target.kill()
        assert not Path(f"/proc/{target.process.pid}").exists()
        assert target.read() == expected
        held.release()
        assert target.read() == b""
        held.release()


def test_the_same_page_pins_again(target: Target) -> None:
    """
    GIVEN pins that were released
    WHEN the next ones are made from what they left
    THEN those hold as well, and descriptors and threads are no more than before
    """
    pin.prepare()
    with pinned(target.mem, target.address):
        pass
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(100):
        with pinned(target.mem, target.address):
            pass
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    with pinned(target.mem, target.address):
        target.kill()
        assert len(target.read()) == SIZE
    assert target.read() == b""


def test_many_pins_at_once() -> None:
    """
    GIVEN 64 processes, and one of them with two pins
    WHEN all are pinned at the same time and killed
    THEN each is readable until its own last pin is released
    """
    with contextlib.ExitStack() as stack:
        program = "import sys; print(id(sys), flush=True); sys.stdin.read()"
        mems, pins = [], []
        for _ in range(64):
            process = subprocess.Popen(
                [sys.executable, "-S", "-c", program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            assert process.stdout is not None
            address = int(process.stdout.readline())
            mem = os.open(f"/proc/{process.pid}/mem", os.O_RDONLY)
            stack.callback(os.close, mem)
            pins.append(stack.enter_context(pinned(mem, address)))
            mems.append((mem, address))
            process.kill()
            process.wait()
        second = stack.enter_context(pinned(mems[0][0], mems[0][1]))
        for (mem, address), held in zip(mems, pins, strict=True):
            assert len(os.pread(mem, 8, address)) == 8
            held.release()
        assert [len(os.pread(mem, 8, address)) for mem, address in mems] == [8] + [0] * 63
        second.release()
        assert os.pread(mems[0][0], 8, mems[0][1]) == b""


def test_the_death_of_the_agent_frees_the_memory(target: Target) -> None:
    """
    GIVEN a process that another process has pinned
    WHEN both are killed
    THEN nothing of its memory is left
    """
    pinner = subprocess.Popen(
        [sys.executable, "-c", _PINNER, str(target.process.pid), str(target.address)],
        stdout=subprocess.PIPE,
    )
    with pinner:
        assert pinner.stdout is not None
        assert pinner.stdout.readline() == b"pinned\n"
        target.kill()
        assert len(target.read()) == SIZE
        pinner.send_signal(signal.SIGKILL)
    assert target.read() == b""


def test_what_cannot_be_pinned_is_said(target: Target) -> None:
    """
    GIVEN addresses that cannot be read, then a process that is gone
    WHEN they are to be pinned
    THEN it fails with the reason, and at once
    """
    with pytest.raises(HoldError, match="none of its addresses can be read"):
        Pin(target.mem, 0)
    for unmapped in (mmap.PAGESIZE, 1 << 62):
        with pytest.raises(HoldError, match="could not be pinned"):
            Pin(target.mem, unmapped)
    target.kill()
    with pytest.raises(HoldError, match="could not be pinned"):
        Pin(target.mem, target.address)


def test_a_signal_to_the_agent_does_not_end_a_pin(target: Target) -> None:
    """
    GIVEN an agent that handles a signal
    WHEN it gets that signal while it pins
    THEN the pin still holds, and its thread does not burn the CPU
    """
    reading, writing = os.pipe()
    old = signal.signal(signal.SIGUSR1, lambda *_: os.write(writing, b"!"))
    try:
        with pinned(target.mem, target.address):
            os.kill(os.getpid(), signal.SIGUSR1)
            assert os.read(reading, 1) == b"!"
            target.kill()
            assert len(target.read()) == SIZE
            assert select.select([reading], [], [], 0)[0] == []
            states = [
                (task / "stat").read_text().rsplit(")", 1)[1].split()[0]
                for task in Path("/proc/self/task").iterdir()
                if int(task.name) != os.getpid()
            ]
            assert "R" not in states
    finally:
        signal.signal(signal.SIGUSR1, old)
        os.close(reading)
        os.close(writing)
