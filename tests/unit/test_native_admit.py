"""May a process go at once? The native part's account gives each owner half of it."""

from __future__ import annotations

import ctypes

import pytest

from collector.native.build import build_library
from collector.native.contract import (
    OWNER_BYTES,
    OWNER_DEVICE,
    TEXTS,
    Account,
    Bytes,
    Level,
    Orders,
    Taken,
)

MIB = 1 << 20
MOST = 8 * MIB
OWNER, ANOTHER = 1000, 1001


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    found = ctypes.CDLL(str(build_library(tmp_path_factory.mktemp("native"), inside=True)))
    found.admit.restype = ctypes.c_bool
    return found


def admitted(library: ctypes.CDLL, orders: Orders, owner: int, size: int) -> bool:
    """Whether a process with so many private bytes may go at once; then it is in the account."""
    status = ctypes.create_string_buffer(f"RssAnon:\t{size >> 10} kB\n".encode())
    taken = Taken(owner=owner)
    taken.texts[TEXTS.index("status")] = Bytes(ctypes.addressof(status), len(status.value))
    return bool(library.admit(ctypes.byref(orders), ctypes.byref(taken)))


@pytest.mark.parametrize(
    ("mine", "size", "at_once"),
    [
        (MIB, 3 * MIB, True),
        (MIB, 4 * MIB, False),
        (5 * MIB, MIB, False),
        (0, 8 * MIB, True),  # one alone may have all
        (0, 9 * MIB, False),
    ],
)
@pytest.mark.parametrize("known", [True, False], ids=["in Python's account", "not in it yet"])
def test_an_owner_has_half_of_the_bytes_or_one_pin(
    library: ctypes.CDLL, mine: int, size: int, at_once: bool, known: bool
) -> None:
    orders = Orders(max_pins=64, max_pinned=MOST)
    # GIVEN an owner who has so much pinned
    if mine and known:
        levels = (Level(OWNER_DEVICE, OWNER, 1), Level(OWNER_BYTES, OWNER, mine))
        orders.open = Account(1, mine, len(levels))
        orders.open.levels[: len(levels)] = levels
    elif mine:
        assert admitted(library, orders, OWNER, mine)
    # WHEN one more of his processes dies, THEN it goes at once if he has not more than half
    assert admitted(library, orders, OWNER, size) is at_once
    # AND those of others do so where there is room
    assert admitted(library, orders, ANOTHER, MIB) is (not at_once or mine + size < MOST)
