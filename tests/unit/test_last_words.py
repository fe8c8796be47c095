"""What a program's last lines say of its end."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from collector.circumstances import LogLine
from collector.diagnosis import Category
from collector.explain.last_words import LastWords, last_words
from collector.explain.reason import concluded
from collector.model import Cause
from tests.unit.test_explain_diagnose import aborted, record

PID = 700
PYTHON = [
    "starting",
    "Traceback (most recent call last):",
    '  File "shop.py", line 3, in <module>',
    "    order['shop']",
    "KeyError: 'shop'",
]
RUST = ["thread 'main' panicked at src/main.rs:3:5:", "no such item"]
OLD_RUST = ["thread 'main' panicked at 'no such item', src/main.rs:3:5"]
GO = ["panic: no such item", "", "goroutine 1 [running]:", "main.take(...)"]


def log(lines: list[str], pid: int = PID) -> list[LogLine]:
    now = datetime.datetime(2025, 1, 2, tzinfo=datetime.UTC)
    return [LogLine(time=now, pid=pid, message=line) for line in lines]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (PYTHON, LastWords(Category.PYTHON_EXCEPTION, "KeyError", "'shop'")),
        (
            [*PYTHON[:-1], "KeyboardInterrupt"],
            LastWords(Category.PYTHON_EXCEPTION, "KeyboardInterrupt", None),
        ),
        (RUST, LastWords(Category.RUST_PANIC, None, "no such item")),
        (OLD_RUST, LastWords(Category.RUST_PANIC, None, "no such item")),
        (GO, LastWords(Category.GO_PANIC, None, "no such item")),
        (["panic: said by another program"], None),
        ([*PYTHON[:-1], "not an exception"], None),
        ([], None),
    ],
)
def test_the_last_lines_of_a_program(lines: list[str], said: LastWords | None) -> None:
    assert last_words(log(lines), PID) == said


def test_the_lines_of_another_process_say_nothing() -> None:
    assert last_words(log(PYTHON, pid=PID + 1), PID) is None


@pytest.mark.parametrize(
    ("facts", "category", "reason"),
    [
        (
            {"exit_code": 1, "logs": log(PYTHON)},
            "python-exception",
            "exited with code 1: Python exception `KeyError`: 'shop'",
        ),
        (
            {"exit_code": 101, "logs": log(RUST)},
            "rust-panic",
            "exited with code 101: Rust panic: no such item",
        ),
        (
            {"exit_code": 2, "logs": log(GO)},
            "go-panic",
            "exited with code 2: Go panic: no such item",
        ),
        # a status that is not the one of a panic
        ({"exit_code": 3, "logs": log(GO)}, "exit-status", "exited with code 3"),
    ],
)
def test_an_exit_with_last_words(facts: dict[str, Any], category: str, reason: str) -> None:
    known = concluded(record(cause=Cause.EXIT, signal=None, **facts))
    assert known.diagnosis is not None
    assert (known.diagnosis.category, known.reason) == (category, reason)


def test_a_panic_that_aborts_has_its_text() -> None:
    known = concluded(aborted("core::panicking::panic_fmt", "take", logs=log(RUST)))
    assert known.reason == "SIGABRT: Rust panic: no such item, in `take`"
