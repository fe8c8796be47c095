"""What dies: sizes, many threads, many mappings."""

from __future__ import annotations

import msgspec

from bench.model import MIB, Case

THREADS = 16


def _size(name: str, mib: int, rounds: int) -> Case:
    # "mixed": every fourth word is random, so that it compresses about as a real heap does
    return Case(
        name=name,
        victim="resident",
        arguments=(str(mib), str(THREADS), "mixed"),
        rounds=rounds,
        resident=mib * MIB,
        about=f"{name} resident, {THREADS} threads",
    )


WARM_UP = _size("warm-up", 1, 1)

CASES = (
    _size("64MiB", 64, 9),
    _size("256MiB", 256, 9),
    _size("1GiB", 1024, 7),
    _size("4GiB", 4096, 5),
    _size("8GiB", 8192, 4),
    Case(
        name="threads",
        victim="threads",
        arguments=("4000",),
        rounds=9,
        resident=64 * MIB,
        about="4,000 threads",
    ),
    Case(
        name="mappings",
        victim="mappings",
        arguments=("50000",),
        rounds=9,
        resident=32 * MIB,
        about="50,000 mappings",
    ),
)

# in a memory cgroup with a limit, as pods and units have them
LIMITED = (
    msgspec.structs.replace(
        _size("64MiB in 1000", 64, 7),
        memory_limit=1000 * MIB,
        about="64 MiB in a memory cgroup of 1,000 MiB: a successor fits",
    ),
    msgspec.structs.replace(
        _size("1GiB in 1.5", 1024, 5),
        memory_limit=1536 * MIB,
        about="1 GiB in a memory cgroup of 1.5 GiB: no room for a successor",
    ),
)
CASES += LIMITED

QUICK = ("64MiB", "256MiB", "1GiB", "threads", "mappings")
QUICK_ROUNDS = 3
