"""Others write kernel.core_pattern: it is noticed, counted, and answered within bounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from collector.errors import HoldError
from collector.handoff.overwrites import EVERY_S, Overwrites

OURS, THEIRS = "@@/run/coreward/core.sock", "|/usr/lib/systemd/systemd-coredump %P"


def test_it_is_noticed_within_a_second() -> None:
    assert 2 * EVERY_S <= 1.0


class Setting:
    """A core_pattern, a clock, and who looks at it."""

    def __init__(self, folder: Path, *, keep: bool) -> None:
        self.file = folder / "core_pattern"
        self.now = 0.0
        self.is_broken = False
        self.write(OURS)
        self.watch = Overwrites(OURS, self._write_again, self.file, lambda: self.now)
        self.watch.keep = keep
        self.watch.look()

    def write(self, value: str) -> None:
        self.file.write_text(f"{value}\n")

    def read(self) -> str:
        return self.file.read_text().rstrip("\n")

    def _write_again(self) -> None:
        if self.is_broken:
            raise HoldError("cannot set it")
        self.write(OURS)

    def look(self, seconds: float = EVERY_S) -> None:
        self.now += seconds
        self.watch.look()


def test_it_is_looked_at_twice_a_second(tmp_path: Path) -> None:
    one = Setting(tmp_path, keep=True)
    assert one.watch.timeout_ms == 500
    # WHEN others write it THEN nothing is done before it is time
    one.write(THEIRS)
    one.look(EVERY_S - 0.1)
    assert (one.read(), one.watch.timeout_ms) == (THEIRS, 100)
    one.look(0.1)
    assert (one.read(), one.watch.counts) == (OURS, {"kept": 1, "yielded": 0})


def test_what_others_write_is_theirs_unless_policy_keeps_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # GIVEN a policy that yields
    one = Setting(tmp_path, keep=False)
    # WHEN others write it THEN that is said and counted once
    one.write(THEIRS)
    for _ in range(3):
        one.look()
    assert (one.read(), one.watch.is_ours) == (THEIRS, False)
    assert one.watch.counts == {"kept": 0, "yielded": 1}
    assert [record.message for record in caplog.records] == [
        f"kernel.core_pattern is {THEIRS!r} by someone else's hand, so no crash is handed to us: "
        "`hold.takeover: keep` has ours written again, and so does a restart"
    ]
    # AND WHEN it is given back and taken once more THEN that counts as another time
    one.write(OURS)
    one.look()
    assert one.watch.is_ours
    one.write(THEIRS)
    one.look()
    assert one.watch.counts == {"kept": 0, "yielded": 2}


def test_two_who_do_not_give_in_do_not_write_for_ever(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # GIVEN a policy that keeps it, and others who write it again and again
    one = Setting(tmp_path, keep=True)
    for _ in range(100):
        one.write(THEIRS)
        one.look()
    # THEN ours is written five times within an hour, and then left alone
    assert (one.read(), one.watch.counts) == (THEIRS, {"kept": 5, "yielded": 1})
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1
    assert "5 times within an hour" in caplog.text
    # AND WHEN the hour is over THEN it is tried again
    one.look(3600)
    assert (one.read(), one.watch.counts) == (OURS, {"kept": 6, "yielded": 1})


def test_what_cannot_be_written_counts_as_theirs(tmp_path: Path) -> None:
    one = Setting(tmp_path, keep=True)
    one.is_broken = True
    one.write(THEIRS)
    for _ in range(20):
        one.look()
    assert one.watch.counts == {"kept": 0, "yielded": 1}


def test_a_setting_that_cannot_be_read_says_nothing(tmp_path: Path) -> None:
    one = Setting(tmp_path, keep=True)
    one.watch.close()
    one.file.unlink()
    one.look()
    assert one.watch.is_ours
    assert one.watch.counts == {"kept": 0, "yielded": 0}
