"""Which processes the native part holds for a dumper: all that it may bid for, and few others."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.dumpers.reach import MAX_ROWS, rows_of
from collector.handoff.native import Native
from collector.model import Cause
from collector.native.build import build_library
from collector.native.contract import BIDDERS, FILES, TEXTS, Bidder, Bytes, Orders, Taken
from collector.policy.facts import facts_from
from collector.policy.match import Matcher
from collector.policy.types import Action, Match, Policy, Rule

GROUPS = b"0::/system.slice/db@main.service/worker\n"
MayBid = Callable[..., bool]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_library(tmp_path_factory.mktemp("native"), inside=True)


@pytest.fixture(scope="module")
def library(built: Path) -> ctypes.CDLL:
    found = ctypes.CDLL(str(built))
    found.may_bid.restype = found.is_like.restype = ctypes.c_bool
    return found


def may_bid(
    library: ctypes.CDLL, match: Match | None, exe: str, name: str = "db", signal: int = 11
) -> bool:
    """What the native part says of a process of uid 1000 with this executable."""
    status = f"Name:\t{name}\nUmask:\t0022\nUid:\t1000\t0\t0\t0\n".encode()
    texts = {"status": ctypes.create_string_buffer(status)}
    texts["cgroup"] = ctypes.create_string_buffer(GROUPS)
    taken, orders = Taken(signal=signal), Orders()
    for text, buffer in texts.items():
        taken.texts[TEXTS.index(text)] = Bytes(ctypes.addressof(buffer), len(buffer.value))
    rows = rows_of(match) if match is not None else []
    library.coreward_bidders(ctypes.byref(orders), (Bidder * len(rows))(*rows), len(rows))
    fd = os.open(exe, os.O_PATH)
    try:
        taken.fds[FILES.index("exe")] = fd
        return bool(library.may_bid(ctypes.byref(orders), ctypes.byref(taken)))
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("match", "held"),
    [
        (None, False),
        (Match(), True),
        (Match(comm=("db",)), True),
        (Match(comm=("d?",)), True),
        (Match(comm=("web",)), False),
        (Match(comm=("web", "d*")), True),
        (Match(uid=(1000,)), True),
        (Match(uid=(1, 2)), False),
        (Match(uid=tuple(range(20))), True),  # more than a row can have
        (Match(signal=(11,)), True),
        (Match(signal=(6, 64)), False),
        (Match(unit=("db@*.service",)), True),
        (Match(unit=("web.service",)), False),
        (Match(cgroup=("/system.slice/*",)), True),
        (Match(cgroup=("/user.slice/*",)), False),
        (Match(comm=("db",), uid=(1,)), False),
        (Match(container=True), True),  # Python looks at it
    ],
)
def test_held_is_what_a_dumper_may_bid_for(
    library: ctypes.CDLL, tmp_path: Path, match: Match | None, held: bool
) -> None:
    program = tmp_path / "program"
    program.touch()
    assert may_bid(library, match, str(program)) is held


def test_the_executable_is_the_one_that_runs_also_if_it_was_replaced(
    library: ctypes.CDLL, tmp_path: Path
) -> None:
    program = tmp_path / "bin" / "program"
    program.parent.mkdir()
    program.touch()
    pattern = f"{tmp_path}/*/program"
    assert may_bid(library, Match(exe=(pattern,)), str(program))
    assert not may_bid(library, Match(exe=("/usr/bin/*",)), str(program))
    fd = os.open(program, os.O_PATH)
    program.unlink()
    assert may_bid(library, Match(exe=(pattern,)), f"/proc/self/fd/{fd}")
    os.close(fd)


def test_a_signal_that_the_kernel_does_not_tell_holds(library: ctypes.CDLL, tmp_path: Path) -> None:
    assert may_bid(library, Match(signal=(6,)), str(tmp_path), signal=-1)


def test_the_rows_are_where_the_native_part_looks(built: Path) -> None:
    native = Native(path=built)
    native.bidders(rows_of(Match(comm=("a", "b"))))
    assert [row.comm for row in native._orders.bidder[:2]] == [b"a", b"b"]
    assert native._orders.bidders == 2
    native.bidders([])
    assert native._orders.bidders == 0
    with pytest.raises(ValueError, match="65 rows of bidders, the most are 64"):
        native.bidders(rows_of(Match()) * 65)


def test_rows_are_bounded() -> None:
    many = tuple(f"x{number}" for number in range(MAX_ROWS + 1))
    assert len(rows_of(Match(comm=many))) == 1
    assert len(rows_of(Match(comm=("a", "b"), exe=("/c", "/d", "/e")))) == 6
    assert rows_of(Match(exe=("/" + "x" * 300,)))[0].exe == b""
    assert BIDDERS >= 8 * MAX_ROWS


TEXT = st.text("ab*?[]!/\\é\n", max_size=6)


@settings(max_examples=300, deadline=None)
@given(glob=TEXT, text=TEXT.filter(lambda text: "\0" not in text))
def test_a_row_never_says_no_where_policy_says_yes(
    library: ctypes.CDLL, glob: str, text: str
) -> None:
    match = Match(comm=(glob or "*",))
    rule = Rule(name="one", match=match, action=Action())
    escaped = text.replace("\\", "\\\\").replace("\n", "\\n")
    facts = facts_from(
        Cause.SIGNAL, 11, status=f"Name:\t{escaped}\n".encode(), groups=GROUPS, exe=None
    )
    if Matcher(Policy(rules=(rule,))).decide(facts).rule == "one":
        pattern = rows_of(match)[0].comm
        assert not pattern or library.is_like(escaped.encode(), pattern)
