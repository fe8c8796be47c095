"""Deaths that BPF only counted: those beyond the share of their program or owner (bpf/share.bpf.h).

A tally only grows, and stays in its map while an agent is down. It is taken out of the map when
nothing has been added to it for long, so that its room can be used again.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec

from collector.errors import ProbeError
from collector.linux import libbpf
from collector.linux.bpfhash import HashMap
from collector.model import Identity, Sender
from collector.probe import events

PIDS = 64  # CW_TALLY_PIDS
KEY = struct.Struct("<QQIIII")  # struct cw_tally_key
_TIMES = struct.Struct("<QQQ")  # the head of struct cw_tally
_PIDS = struct.Struct(f"<{PIDS}I")
TALLY_BYTES = _TIMES.size + events.WHO.size + events.SENDER.size + _PIDS.size
COUNTED, TALLIES = "counted", "tallies"  # maps


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """Deaths of one program, or of one owner, by one signal. Times are CLOCK_BOOTTIME, ns."""

    key: bytes  # of the map
    who: Identity  # the first of them
    sender: Sender | None  # of its signal
    signal: int | None  # None: they exited
    of_owner: bool  # of several programs, of one owner
    count: int
    first_ns: int
    last_ns: int
    pids: tuple[int, ...]  # the last ones, the newest last


class Tallies:
    """The tallies of one build of the programs. Thread-safe."""

    def __init__(self, directory: Path) -> None:
        self._tallies = HashMap(libbpf.get_pin(str(directory / TALLIES)))
        # descriptor of a map, u32 -> u64: pid -> start, ns, of a process that dumps core, whose
        # death is in a tally and nowhere else
        self.counted = libbpf.get_pin(str(directory / COUNTED))

    def close(self) -> None:
        self._tallies.close()
        os.close(self.counted)

    def all(self) -> Iterator[Tally]:
        """What was counted so far."""
        for key in self._tallies:
            value = self._tallies.get(key)
            if value is not None:
                yield decode(key, value)

    def remove(self, tally: Tally) -> Tally | None:
        """Take it out; returns it as it was then, None if it was not there."""
        value = self._tallies.remove(tally.key)
        return None if value is None else decode(tally.key, value)


def decode(key: bytes, value: bytes) -> Tally:
    """One entry of the map. ProbeError if it is not one of bpf/coreward.h."""
    if len(key) != KEY.size or len(value) != TALLY_BYTES:
        raise ProbeError(f"a tally of {len(key)} and {len(value)} bytes")
    inode, _cgroup, dev, _owner, signal, _ = KEY.unpack(key)
    count, first_ns, last_ns = _TIMES.unpack_from(value)
    pids = _PIDS.unpack_from(value, TALLY_BYTES - _PIDS.size)
    begin = count % PIDS
    return Tally(
        key=key,
        who=events.identity(value, _TIMES.size),
        sender=events.sender(value, _TIMES.size + events.WHO.size),
        signal=signal or None,
        of_owner=not inode and not dev,
        count=count,
        first_ns=first_ns,
        last_ns=max(first_ns, last_ns),
        pids=tuple(pid for pid in pids[begin:] + pids[:begin] if pid),
    )
