"""The last system calls beside a record, and what a rule of the policy keeps of them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from collector.arch.call_sets import wanted
from collector.errors import StoreError, UsageError
from collector.policy.types import Match, Trace
from collector.trace import Rule, layout
from collector.trace.layout import RECORD, Call, KeptEvent, Text
from collector.watch import kept
from collector.watch.calls import CallKeeper, Told, rule_of
from collector.watch.kept import KeptCalls, KeptThread
from collector.watch.messages import AskCalls, Calls
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


def test_what_was_unmapped_is_told_in_the_order_of_time() -> None:
    # GIVEN two threads that unmapped memory, one of them in vain, among a hundred calls
    def unmapped(start: int, size: int, result: int, at: int) -> Call:
        return msgspec.structs.replace(call("munmap", start, size, result=result), exit_ns=at)

    one = msgspec.structs.replace(
        THREAD, calls=(unmapped(0x9000, 1, 0, 30), unmapped(0xB000, 4096, -22, 40), *THREAD.calls)
    )
    other = msgspec.structs.replace(THREAD, calls=(unmapped(0x5000, 8192, 0, 20),) * 3)
    found = msgspec.structs.replace(KEPT, threads=(one, other)).facts.unmapped
    # THEN whole pages are told, the last ones last
    assert found == [(0x5000, 0x7000)] * 3 + [(0x9000, 0xA000)]
    # AND of many only the last ones
    many = msgspec.structs.replace(THREAD, calls=other.calls * 50)
    assert len(msgspec.structs.replace(KEPT, threads=(many, one)).facts.unmapped) == 64


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


def event(tid: int, *, lost: int = 0, lost_calls: int = 0, last: bool = False) -> KeptEvent:
    return KeptEvent(
        time_ns=1,
        tid=tid,
        tgid=7,
        lost=lost,
        rule=1,
        made=2,
        status=9,
        last=last,
        comm="worker",
        start_ns=1,
        lost_calls=lost_calls,
        calls=(),
    )


@pytest.mark.parametrize(
    ("texts", "has_text", "kept_file"),
    [(False, True, False), (False, False, True), (True, True, True)],
)
def test_texts_that_may_not_be_kept_are_seen_in_the_calls_themselves(
    texts: bool, has_text: bool, kept_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN calls of a process that has ended, kept by a rule that there is no more
    texts_of_it = {1: Text(b"secret")} if has_text else {}
    made = call("openat", -100, 0x7F00, 0, result=3, texts=texts_of_it)
    answers: list[Calls] = []
    keeper = CallKeeper(answers.append)
    keeper._note(msgspec.structs.replace(event(7, last=True), calls=(made,)))
    # WHEN the agent asks for them, THEN their contents decide
    ask = AskCalls(record="r", pid=7, start_ns=1, folder=str(tmp_path), texts=texts)
    keeper._answer(ask)
    assert [(one.facts is not None, one.lost) for one in answers] == [
        (True, None) if kept_file else (False, "not kept: the texts in them cannot be redacted")
    ]
    assert (tmp_path / kept.FILE).exists() is kept_file


def test_what_could_not_be_kept_or_told_is_counted() -> None:
    told = Told(rule="")
    told.add(event(7), "a")
    assert (told.rule, told.lost, told.complete) == ("a", {}, False)
    told.add(event(8, lost_calls=3), "a")
    told.add(event(9, lost_calls=2, lost=1, last=True), "a")
    assert told.complete
    assert told.lost == {
        "calls": "5 of 2 threads: there was no memory to keep them, or no room to tell",
        "texts": "those of 1 threads had no room",
    }


def test_a_thread_that_had_no_room_to_tell() -> None:
    raw = layout.UNTOLD.pack(9, 9, 1000, 7, 2, 1, 1)
    found = layout.decode_untold((8).to_bytes(4, "little"), raw)
    assert (found.tid, found.tgid, found.start_ns, found.rule) == (8, 7, 1000, 1)
    assert (found.made, found.calls, found.lost_calls, found.lost) == (0, (), 9, 2)
    assert found.last


def test_texts_that_were_lost_are_not_empty_ones() -> None:
    # GIVEN a call that had a text of five bytes at its second argument
    texts = b"\x01\x01\x05\x00" + bytes(8)
    raw = layout.CALL.pack(1, *range(6), 3, 257, 0, 0, texts)
    # THEN it is the text, or unknown
    assert layout.decode_call(raw, 2, b"/name").texts == {1: Text(b"/name")}
    assert layout.decode_call(raw, 2, b"").texts == {1: Text(None)}


def test_of_kept_texts_there_is_a_bound() -> None:
    with pytest.raises(UsageError, match="strings: 65: at most 64 are kept"):
        Rule(mode=RECORD, strings=65)
