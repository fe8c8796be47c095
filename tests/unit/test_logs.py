"""Nobody writes lines of his own into the log, or hides in a listing."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import unicodedata

import msgspec
import pytest

from collector.cli import lines
from collector.cli.render import clean
from collector.logs import CleanFormatter, JsonFormatter
from collector.store.encoding import json_text
from tests.unit.store_samples import SEGFAULT

NAME = "evil\nERROR coreward: all is lost\x1b[2J\u202e\u3164"
FORMATTER = CleanFormatter("%(levelname)s %(message)s")


def test_one_event_is_one_line() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "process %s: %d", (NAME, 7), None)
    assert FORMATTER.format(record) == (
        "INFO process evil\\nERROR coreward: all is lost\\x1b[2J\\u202e\\u3164: 7"
    )


def test_json_is_one_object_in_one_line() -> None:
    # GIVEN an event with hostile names and an exception
    try:
        raise ValueError(NAME)
    except ValueError:
        trace = sys.exc_info()
    record = logging.LogRecord("x", logging.ERROR, "", 0, "process %s: %d", (NAME, 7), trace)
    record.created = 1.5
    text = JsonFormatter().format(record)
    # THEN a terminal shows it, and a program reads what it was
    assert text.isascii() and text.isprintable()
    event = json.loads(text)
    assert event.pop("exception").startswith("Traceback")
    assert event == {
        "time": "1970-01-01T00:00:01.500Z",
        "level": "error",
        "logger": "x",
        "message": f"process {NAME}: 7",
    }


def test_json_of_a_death() -> None:
    text = lines.of_death(msgspec.structs.replace(SEGFAULT, comm=NAME))
    assert text.isascii() and text.isprintable()
    death = json.loads(text)
    assert (death["event"], death["id"], death["comm"]) == ("death", SEGFAULT.id, NAME)
    assert (death["time"], death["signal"]) == ("2026-11-21T03:00:00.123Z", "SIGSEGV")


def test_lines_of_a_traceback_are_indented() -> None:
    try:
        raise ValueError(NAME)
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "failed", (), sys.exc_info())
    first, *others = FORMATTER.format(record).split("\n")
    assert first == "ERROR failed"
    assert all(line.startswith("  ") for line in others)
    assert others[-2:] == [
        "  ValueError: evil",
        "  ERROR coreward: all is lost\\x1b[2J\\u202e\\u3164",
    ]


def test_what_is_set_up_for_a_process() -> None:
    code = f"from collector import logs; import logging; logs.set_up(20); logging.info({NAME!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b""
    assert done.stderr.count(b"\n") == 1 and b"\x1b" not in done.stderr


# letters and signs that take no ink: of each script that has some
INVISIBLE = (
    "\u3164\u115f\u1160\uffa0\u2800\u034f\u17b4\u180e\u200b\u2060\ufe0f\u00ad\u3000\u00a0\ue000"
)


@pytest.mark.parametrize("char", INVISIBLE)
def test_invisible_characters_are_spelled_out(char: str) -> None:
    assert clean(f"a{char}b").isascii()
    assert json_text(f"a{char}b").isascii()


def test_no_format_character_is_left() -> None:
    # of the categories that show nothing, only the signs that do have a shape stay
    silent = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp", "Zs")
    left = [
        char
        for char in map(chr, range(0x110000))
        if unicodedata.category(char) in silent and char != " " and clean(char) == char
    ]
    assert all(
        "ARABIC" in (name := unicodedata.name(c)) or "SIGN" in name or "MARK" in name for c in left
    )


def test_names_that_people_use_stay() -> None:
    for name in (
        "café",
        "Größe",
        "日本語",
        "한국어",
        "עברית",
        "العربية",
        "ไทย",
        "हिन्दी",
        "emoji 🎉",
    ):
        assert clean(name) == name
