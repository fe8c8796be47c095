"""What the native part and Python share: `handoff.h` in ctypes, which a test compares with it."""

from __future__ import annotations

import ctypes
import enum
import struct
from ctypes import c_char, c_int32, c_int64, c_uint32, c_uint64

PINS = 32  # pages that are ready for a pin
HANDS = 256  # processes that were released and are not known to Python yet
TAKERS = 64  # threads at most that take processes from the kernel
WHY, LINE = 128, 256  # bytes
PIN_MS = 50  # a pin that does not hold within so long never will
MAX_CMDLINE = 16 << 10  # bytes of a process's arguments that are kept
DEPTH = 16  # memory cgroups with a limit above one process
LIMITS = DEPTH + 2  # of one process: these, and the two shares of its owner
LEVELS = 256  # and of all that are pinned
HANDFUL = 8  # deaths of one owner at a time that are no storm, whatever is slow
HELPER_PATH = 256  # bytes, with the zero
BIDDERS = 64  # rows of what dumpers want to see
BIDDER_UIDS = 8
BIDDER_COMM, BIDDER_PATH = 64, 256  # bytes of a pattern, with its zero
OWNER_DEVICE = 0  # of a level that is an owner, with a number of pins
OWNER_BYTES = (1 << 32) - 1  # the same with their bytes

TEXTS = (
    *("stat", "status", "cmdline", "auxv", "cgroup", "coredump_filter"),
    "descriptors",  # as collector.linux.open_files.decode takes them
    "maps",
)
FILES = ("dir_fd", "mem", "pagemap", "root", "exe", "mounts")
EMPTY, READY, TAKEN = 0, 1, 2  # enum pin_state


class Answer(enum.IntEnum):
    """What became of a hand-off."""

    CLOSED = -1
    REFUSED = 0
    PROCESS = 1
    LATE = 2
    NOBODY = 3


class Pin(ctypes.Structure):
    """struct pin."""

    _fields_ = (("state", c_int32), ("uffd", c_int32), ("page", c_uint64), ("request", c_uint64))


class Hand(ctypes.Structure):
    """struct hand."""

    _fields_ = (("pid", c_int32), ("unused", c_int32), ("start_ticks", c_uint64))


class Level(ctypes.Structure):
    """struct level."""

    _fields_ = (("device", c_uint64), ("inode", c_uint64), ("bytes", c_int64))


class Bidder(ctypes.Structure):
    """struct bidder."""

    _fields_ = (
        ("signals", c_uint64),
        ("uid_count", c_int32),
        ("uids", c_uint32 * BIDDER_UIDS),
        ("comm", c_char * BIDDER_COMM),
        ("exe", c_char * BIDDER_PATH),
        ("cgroup", c_char * BIDDER_PATH),
        ("unused", c_int32),
    )


class Account(ctypes.Structure):
    """struct account."""

    _fields_ = (
        ("pins", c_int64),
        ("bytes", c_int64),
        ("count", c_int64),
        ("levels", Level * LEVELS),
    )


class Orders(ctypes.Structure):
    """struct orders."""

    _fields_ = (
        ("threads_program", c_int32),
        ("mappings_program", c_int32),
        ("stream", c_int32),
        ("instant", c_int32),
        ("max_pins", c_int32),
        ("busy", c_int32),
        ("max_pinned", c_int64),
        ("open", Account),
        ("fresh", Account),
        ("pins", Pin * PINS),
        ("in_hand", Hand * HANDS),
        ("counted_map", c_int32),
        ("armed_map", c_int32),
        ("heard", c_uint64),
        ("helper_device", c_uint64),
        ("helper_inode", c_uint64),
        ("helper_path", c_char * HELPER_PATH),
        ("patience_ns", c_int64),
        ("capture_ns", c_int64),
        ("left_behind", c_int32),
        ("untold", c_int32),
        ("bidders", c_int32),
        ("unused_too", c_int32),
        ("bidder", Bidder * BIDDERS),
    )


class Bytes(ctypes.Structure):
    """struct bytes."""

    _fields_ = (("at", c_uint64), ("size", c_uint64))

    def copy(self) -> bytes:
        return ctypes.string_at(self.at, self.size) if self.size else b""


class Taken(ctypes.Structure):
    """struct taken."""

    _fields_ = (
        ("hold", c_int32),
        ("pidfd", c_int32),
        ("pid", c_int32),
        ("tid", c_int32),
        ("signal", c_int32),
        ("gathered", c_int32),
        ("start_ticks", c_uint64),
        ("accepted_ns", c_int64),
        ("released_ns", c_int64),
        ("why", c_char * WHY),
        ("line", c_char * LINE),
        ("fds", c_int32 * len(FILES)),
        ("pin", c_int32),
        ("begun", c_int32),
        ("pin_fd", c_int32),
        ("watch", c_int32),
        ("limits", c_int32),
        ("others", c_int32),
        ("spared", c_int32),
        ("unopened", c_int32),
        ("levels", Level * LIMITS),
        ("address", c_uint64),
        ("private_size", c_int64),
        ("core_limit", c_uint64),
        ("entries", c_uint64),
        ("robust_until_ns", c_int64),
        ("owner", c_uint64),
        ("texts", Bytes * len(TEXTS)),
        ("threads", Bytes),
        ("mappings", Bytes),
        ("words", Bytes),
        ("shared", Bytes),
        ("area", Bytes),
    )


class Word(ctypes.Structure):
    """struct word; `WORD` reads many of them faster."""

    _fields_ = (("address", c_uint64), ("value", c_uint32), ("unused", c_uint32))


class Shared(ctypes.Structure):
    """struct shared, and `SHARED` the same."""

    _fields_ = (("start", c_uint64), ("fd", c_int32), ("code", c_int32))


WORD, SHARED = struct.Struct("=Q4s4x"), struct.Struct("=Qii")
