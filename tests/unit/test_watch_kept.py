"""The last system calls beside a record, and what a rule of the policy keeps of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from collector.arch.call_sets import wanted
from collector.errors import StoreError
from collector.policy.types import Match, Trace
from collector.trace.layout import RECORD, Text
from collector.watch import kept
from collector.watch.calls import rule_of
from collector.watch.kept import KeptCalls, KeptThread
from tests.unit.trace_samples import call

THREAD = KeptThread(
    tid=7,
    comm="worker\n",
    made=9,
    calls=(
        call("openat", -100, 0x7F00, 0, result=3, texts={1: Text(b"\xff\0name", cut=True)}),
        call("read", 3, 0x7F00, 10, result=None),
    ),
)
KEPT = KeptCalls(version=kept.VERSION, rule="a", time_ns=5000, threads=(THREAD,), lost={})


def test_what_was_written_is_read(tmp_path: Path) -> None:
    kept.write(KEPT, tmp_path)
    assert kept.read(tmp_path) == KEPT
    assert (KEPT.facts.threads, KEPT.facts.calls, KEPT.facts.rule) == (1, 2, "a")
    assert KEPT.thread(7) == THREAD
    assert KEPT.thread(8) is None


@pytest.mark.parametrize("damage", [b"", b"no zstd", b"\x28\xb5\x2f\xfd\x20\x01\x09\x00\x00\xc1"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / kept.FILE).write_bytes(damage)
    with pytest.raises(StoreError, match=r"calls\.zst: damaged"):
        kept.read(tmp_path)


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be read: No such file"):
        kept.read(tmp_path)


def test_a_rule_says_which_calls_are_kept() -> None:
    rule = rule_of(
        Trace(name="a", match=Match(), calls=8, strings=32, include=("%file",), exclude=("openat",))
    )
    assert (rule.mode, rule.calls, rule.strings, rule.tell_failed) == (RECORD, 8, 32, True)
    files, openat = wanted(["%file"]), wanted(["openat"])
    assert rule.wanted == tuple(f & ~o for f, o in zip(files, openat, strict=True))
    # AND without any word all are
    everything = rule_of(Trace(name="a", match=Match()))
    assert everything.wanted == wanted(["all"])
