"""`coreward top`: who dies most, in a pipe and on a terminal."""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from collector.cli import main, render
from collector.cli.live import _Page, live
from collector.cli.top import Deaths, lines, top_of
from collector.model import Cause
from collector.store import recent
from collector.store.index import NAME
from collector.store.store import Store
from tests.system.victims import PATIENCE
from tests.unit.signature_samples import ENTRY, death, own

ROOT = Path(__file__).resolve().parents[2]
NOW = datetime.datetime(2026, 11, 22, 3, 0, 0, tzinfo=datetime.UTC)
COUNT = [*own("count_request"), *ENTRY]
DROP = [*own("drop_twice"), *ENTRY]
HOSTILE = "a\x1b[2J\nb"


def ago(seconds: float) -> datetime.datetime:
    return NOW - datetime.timedelta(seconds=seconds)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("COREWARD_STORE", str(tmp_path / "store"))
    with Store(tmp_path / "store", create=True) as store:
        yield store


def fill(store: Store) -> None:
    """A unit that dies now and then, one that dies now, a program with a hostile name."""
    with store.batch():
        for number in range(8):
            store.put(death(number, COUNT, unit="web.service", time=ago(3000 + 7000 * number)))
        store.put(death(10, DROP, unit="shop.service", time=ago(20)))
        store.put(death(11, DROP, unit="shop.service", time=ago(50)))
        store.put(death(12, DROP, unit=None, exe=HOSTILE, time=ago(90)))
        store.put(death(13, DROP, unit="old.service", time=ago(90000)))
        store.put(death(14, COUNT, unit="web.service", time=ago(5), cause=Cause.SNAPSHOT))


def page(store: Store, sort: str, width: int | None = None, most: int = 2) -> list[str]:
    screen = render.Screen()
    screen.width = width
    return lines(top_of(store, NOW, sort), sort, screen, most)


def test_units_and_signatures_by_how_often_they_die(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render, "local_time", lambda time: f"{time:%H:%M:%S}")
    fill(store)
    first, second = (str(store.get(f"{n:016x}").signature.id) for n in (0, 10))  # type: ignore[union-attr]
    expected = [
        "03:00:00   deaths in the last minute 2, hour 4, day 11",
        "",
        "MINUTE  HOUR*  DAY        LAST  UNIT (2 of 3)",
        "     2      2    2    20 s ago  shop.service",
        "     0      1    8  50 min ago  web.service",
        "",
        "MINUTE  HOUR*  DAY        LAST  SIGNATURE",
        f"     2      3    3    20 s ago  {second}  SIGSEGV near-null | drop_twice",
        f"     0      1    8  50 min ago  {first}  SIGSEGV near-null | count_request",
    ]
    assert page(store, "hour") == expected
    # AND by the day another one is first; what a name would have the terminal do is spelled out
    assert page(store, "day")[3].endswith("web.service")
    assert any(line.endswith(r"a\x1b[2J\nb") for line in page(store, "hour", most=3))
    # AND nothing is wider than the terminal
    assert max(len(line) for line in page(store, "hour", 40)) == 40
    # AND a user's own, or a store without an index, shows the same
    store.close()
    (store.path / NAME).unlink()
    with Store(store.path, create=False, readonly=True) as without:
        assert page(without, "hour") == expected


def test_deaths_that_one_record_stands_for_come_evenly(store: Store) -> None:
    # GIVEN a storm of 7,200 deaths in the last two hours, that goes on
    store.put(death(1, COUNT, time=ago(7200), last=NOW, count=7200))
    deaths = top_of(store, NOW, "hour").deaths
    # THEN each hour has half of them
    assert (deaths.minute, deaths.hour, deaths.day) == (60, 3600, 7200)
    # AND none of them counts when it is over for a day
    assert top_of(store, NOW + datetime.timedelta(days=2), "hour").units == []
    # AND half of them when the first one was a day and an hour ago, also without an index
    later = NOW + datetime.timedelta(hours=23)
    assert top_of(store, later, "hour").deaths.day == 3600
    store.close()
    (store.path / NAME).unlink()
    with Store(store.path, create=False, readonly=True) as without:
        assert top_of(without, later, "hour").deaths.day == 3600


def test_of_many_storms_none_is_left_out(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN three storms, of which one is read, and of the others no more known than the index has
    monkeypatch.setattr(recent, "_MOST_STORMS", 1)
    now = datetime.datetime.now(datetime.UTC)
    for number in range(3):
        first = now - datetime.timedelta(hours=1)
        storm = death(number, COUNT, unit=f"{number}.service", time=first, count=100, last=now)
        store.put(storm)
    # THEN all of their deaths count
    found = top_of(store, now + datetime.timedelta(seconds=1), "hour")
    assert {one.unit for one in found.units} == {"0.service", "1.service", "2.service"}
    assert found.deaths.day == 300


def test_keys_that_are_typed_fast_are_taken_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # GIVEN keys that come in one read
    end, others = os.pipe()
    monkeypatch.setattr(sys, "stdin", None)
    page = _Page()
    page._in = end
    os.write(others, b"mHd")
    # THEN each is taken, and `q` ends it whatever is before
    assert [page.wait(PATIENCE) for _ in range(3)] == ["m", "h", "d"]
    os.write(others, b"mq")
    assert page.wait(PATIENCE) == "q"
    for fd in (end, others, page._wake, page._woken):
        os.close(fd)


def test_what_a_wrong_clock_has_left_in_the_future_does_not_count(store: Store) -> None:
    # GIVEN deaths of tomorrow, a storm that begins there, and one death of now
    store.put(death(1, COUNT, time=ago(-86400)))
    store.put(death(2, COUNT, time=ago(-60), last=ago(-120), count=50))
    store.put(death(3, COUNT, time=NOW))
    # THEN the last minute has one
    assert top_of(store, NOW, "hour").deaths == Deaths(minute=1, hour=1, day=1)


def test_json_once_and_line_by_line(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.datetime.now(datetime.UTC)
    store.put(death(1, COUNT, unit="web.service", time=now - datetime.timedelta(minutes=5)))
    assert main(["top", "--once", "--json"]) == 0
    whole: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert whole["deaths"] == {"minute": 0, "hour": 1, "day": 1}
    assert [(one["unit"], one["deaths"]["hour"]) for one in whole["units"]] == [("web.service", 1)]
    # AND without --once a line for each look, until somebody ends it
    looks = iter([None, None, KeyboardInterrupt])

    def sleep(_: float) -> None:
        if (error := next(looks)) is not None:
            raise error

    monkeypatch.setattr("collector.cli.top.time.sleep", sleep)
    assert main(["top", "--json", "-n", "1"]) == 130
    assert len([json.loads(line) for line in capsys.readouterr().out.splitlines()]) == 3
    # AND a pipe has it once
    assert main(["top"]) == 0
    assert "web.service" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [["--every", "1ms"], ["--every", "99999999999w"], ["--every", "x"], ["-n", "0"]]
)
def test_what_makes_no_sense_is_refused(store: Store, words: list[str]) -> None:
    assert main(["top", *words]) == 2


class Terminal:
    """A terminal of 80 columns, and the verb on it."""

    def __init__(self) -> None:
        self.unread = b""
        self.main, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
        self.modes = termios.tcgetattr(other)
        self.other = os.dup(other)
        self.verb = subprocess.Popen(
            [sys.executable, "-m", "collector", "top", "--every", "1h"],
            cwd=ROOT,
            stdin=other,
            stdout=other,
            stderr=subprocess.PIPE,
            env={**os.environ, "TERM": "xterm"},
        )
        os.close(other)

    def read_until(self, text: bytes) -> bytes:
        """What it printed since the last call, up to and with this text."""
        while text not in self.unread:
            ready, _, _ = select.select([self.main], [], [], PATIENCE)
            assert ready, self.unread
            self.unread += os.read(self.main, 65536)
        seen, _, self.unread = self.unread.partition(text)
        return seen + text

    def end(self) -> tuple[int, bytes]:
        _, said = self.verb.communicate(timeout=PATIENCE)
        return self.verb.returncode, said


def test_a_terminal_is_given_back(store: Store) -> None:
    now = datetime.datetime.now(datetime.UTC)
    for number in range(30):
        store.put(death(number, COUNT, unit=f"web{number:02}.service", time=now))
    one = Terminal()
    try:
        # GIVEN the page THEN it is as high as the terminal at most
        seen = one.read_until(b"HOUR*") + one.read_until(b"SIGNATURE")
        assert b"\x1b[?1049h" in seen and b"UNIT (9 of 30)" in seen
        # WHEN a key is pressed THEN it is sorted by that, at once
        os.write(one.main, b"d")
        one.read_until(b"DAY*")
        # WHEN the terminal's size changes THEN the page does
        fcntl.ioctl(one.other, termios.TIOCSWINSZ, struct.pack("4H", 50, 80, 0, 0))
        one.verb.send_signal(signal.SIGWINCH)
        one.read_until(b"UNIT (22 of 30)")
        # WHEN `q` is pressed THEN it ends, and the terminal is as before
        os.write(one.main, b"q")
        one.read_until(b"\x1b[?25h\x1b[?1049l")
        assert one.end() == (0, b"")
        assert termios.tcgetattr(one.other) == one.modes
    finally:
        one.verb.kill()
        os.close(one.main)
        os.close(one.other)


def test_a_line_as_wide_as_the_terminal_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(_Page, "_write", lambda _, text: written.append(text))
    # WHEN lines are drawn
    _Page.__new__(_Page).show(["x" * 80, "y" * 80])
    # THEN nothing is erased where the cursor may still be on a line's last character
    assert written == [f"\x1b[H\x1b[K{'x' * 80}\n\x1b[J{'y' * 80}"]


def test_a_terminal_that_is_gone_before_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    main_side, other = pty.openpty()
    with open(other, "w", closefd=True) as out:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stdin", None)
        os.close(main_side)
        live(lambda _key, _height: pytest.fail("it is drawn"), 1.0)


def test_a_terminal_that_goes_ends_it_without_a_word(store: Store) -> None:
    one = Terminal()
    one.read_until(b"deaths in the last minute")
    os.close(one.other)
    os.close(one.main)
    assert one.end() == (0, b"")
