"""Limits that are raised for a dead process, and put back: on files as a cgroup has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from collector.agent.lend import Lender
from collector.linux.memory import CgroupLevel, LevelKey
from tests.system.victims import wait_until

MIB = 1 << 20


class Group:
    """A cgroup of files."""

    def __init__(self, folder: Path, version: int) -> None:
        self.folder = folder / "group"
        self.folder.mkdir()
        self.names = ("memory.max", "memory.high") if version == 2 else ("memory.limit_in_bytes",)
        self.usage = "memory.current" if version == 2 else "memory.usage_in_bytes"
        for name in self.names:
            self.set(name, 100 * MIB)
        self.set(self.usage, 90 * MIB)

    def set(self, name: str, value: int) -> None:
        (self.folder / name).write_text(str(value))

    def limits(self) -> set[int]:
        return {int((self.folder / name).read_text() or 0) // MIB for name in self.names}

    @property
    def level(self) -> CgroupLevel:
        return CgroupLevel(
            path=str(self.folder), key=LevelKey(0, 1), limit=100 * MIB, usage=90 * MIB
        )


@pytest.fixture(params=[1, 2])
def group(tmp_path: Path, request: pytest.FixtureRequest) -> Group:
    return Group(tmp_path, request.param)


def test_a_limit_comes_back_when_the_usage_fits(group: Group, tmp_path: Path) -> None:
    # GIVEN two dead processes, for which a limit was raised
    lender = Lender(tmp_path)
    first = lender.lend([group.level], 50 * MIB)
    second = lender.lend([group.level], 30 * MIB)
    assert group.limits() == {180} and (tmp_path / "lent.json").exists()
    assert lender.lent == 80 * MIB * len(group.names)
    # WHEN one is written, THEN its part comes back
    group.set(group.usage, 120 * MIB)
    lender.give_back(first, 50 * MIB)
    wait_until(lambda: group.limits() == {130}, "it was not put back")
    # WHEN the other is written, and the usage is still high, THEN nothing is forced
    lender.give_back(second, 30 * MIB)
    assert group.limits() == {130}
    group.set(group.usage, 60 * MIB)
    wait_until(lambda: group.limits() == {100}, "it was not put back")
    wait_until(lambda: lender.lent == 0, "it still counts")


def test_the_next_agent_puts_back_what_a_killed_one_left(group: Group, tmp_path: Path) -> None:
    Lender(tmp_path).lend([group.level], 50 * MIB)
    said = Lender(tmp_path).restore()
    assert group.limits() == {100}
    assert [line.endswith("is as before") for line in said] == [True] * len(group.names)
    assert Lender(tmp_path).restore() == []


def test_what_does_not_fit_stays_on_record(group: Group, tmp_path: Path) -> None:
    Lender(tmp_path).lend([group.level], 50 * MIB)
    group.set(group.usage, 140 * MIB)
    later = Lender(tmp_path)
    assert "still raised" in later.restore()[0]
    assert group.limits() == {150}
    group.set(group.usage, 50 * MIB)
    wait_until(lambda: group.limits() == {100}, "it was not put back")


def test_a_limit_that_somebody_else_has_set_is_theirs(group: Group, tmp_path: Path) -> None:
    lender = Lender(tmp_path)
    loan = lender.lend([group.level], 50 * MIB)
    for name in group.names:
        group.set(name, 120 * MIB)
    lender.give_back(loan, 50 * MIB)
    wait_until(lambda: lender.lent == 0, "it still counts")
    assert group.limits() == {120}
