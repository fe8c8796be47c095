"""What `signatures`, `signature`, `note` and `list --signature` print and do."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from collector.cli import main
from collector.model import CrashSite
from collector.signature.note import Note, noted
from collector.store.store import Store
from tests.unit.signature_samples import ABORT, BUILD, ENTRY, death, frame, own
from tests.unit.store_samples import TIME, numbered

NEW_BUILD = "77" * 20
COUNT = [*own("count_request", "serve_request"), *ENTRY]
DROP = [*own("drop_twice", "serve_request"), *ENTRY]


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("COREWARD_STORE", str(tmp_path / "store"))
    with Store(tmp_path / "store", create=True) as store:
        yield store


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(words) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    status = main(words)
    out, err = capsys.readouterr()
    assert out == ""
    return status, err


def read(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    return json.loads(shown(capsys, *words, "--json"))


def id_of(store: Store, number: int) -> str:
    signature = store.get(f"{number:016x}").signature
    assert signature is not None and signature.id is not None
    return signature.id


def test_signatures_are_counted_with_their_times_and_builds(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    # GIVEN three deaths of one bug in two builds, and one of another
    newer = [replace(one, build_id=NEW_BUILD) for one in COUNT]
    for record in (death(1, COUNT), death(2, COUNT), death(3, DROP), death(4, newer)):
        store.put(record)
    first, second = id_of(store, 1), id_of(store, 3)

    assert shown(capsys, "signatures") == (
        "ID            DEATHS  FIRST                LAST                 BUILDS  EXECUTABLE  "
        "SIGNATURE\n"
        f"{first}       3  2026-11-21 03:00:01  2026-11-21 03:00:04       2  shop        "
        "SIGSEGV near-null | count_request\n"
        f"{second}       1  2026-11-21 03:00:03  2026-11-21 03:00:03       1  shop        "
        "SIGSEGV near-null | drop_twice\n"
    )
    found = read(capsys, "signatures", "--limit", "1")
    assert [(one["id"], one["deaths"], one["outdated"]) for one in found] == [(first, 3, False)]
    assert [(b["build"], b["deaths"]) for b in found[0]["builds"]] == [(NEW_BUILD, 1), (BUILD, 2)]
    # AND its deaths are found, and others are not
    listed = read(capsys, "list", "--signature", first[:5])
    assert [record["start_ns"] for record in listed] == [4, 2, 1]
    assert read(capsys, "signatures", "--exe", "*/other") == []
    assert shown(capsys, "signatures", "--exe", "*/other").startswith("no signatures on record")


def test_one_signature_with_all_that_is_known(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    # GIVEN a bug of one unit, with two ways into it, and many deaths of another
    other_way = [*own("count_request", "refresh"), *ENTRY]
    hour = 3600
    with store.batch():
        for number in range(6):
            frames = other_way if number == 5 else COUNT
            store.put(death(number * hour, frames, unit="web@3.service"))
        for number in range(40):
            store.put(death(number * hour + 7, DROP, unit="web@1.service"))
    first = id_of(store, 0)

    found = read(capsys, "signature", first)

    assert found["signature"]["deaths"] == 6
    assert [example["id"] for example in found["examples"]] == [
        f"{number * hour:016x}" for number in (5, 4, 3, 2, 1)
    ]
    assert [(way["deaths"], way["frames"][:2]) for way in found["ways"]] == [
        (1, ["count_request", "refresh"]),
        (4, ["count_request", "serve_request"]),
    ]
    assert found["compared"] == 40
    assert [
        (f["facet"], f["value"], f["here"], f["others"]) for f in found["over_represented"]
    ] == [("unit", "web@3.service", 6, 0)]
    # AND the page for people says the same
    page = shown(capsys, "signature", first)
    for line in (
        "SIGSEGV near-null | count_request",
        f"  {BUILD}  6 deaths, 2026-11-21 03:00:00 to 2026-11-21 08:00:00",
        "  unit web@3.service: 6 of 6 here, 0 of 40 others; chance below 0.1% (6 episodes)",
    ):
        assert line in page.splitlines()
    # AND `latest` is the signature of the newest death
    assert read(capsys, "signature", "latest")["signature"]["id"] == id_of(store, 39 * hour + 7)


def test_signatures_with_like_stacks_are_named(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    # GIVEN a bug that moved from one function to the next, among others
    moved = [*own("check_request", "serve_request", "rare_path"), *ENTRY]
    store.put(death(1, [*own("count_request", "serve_request", "rare_path"), *ENTRY]))
    store.put(death(2, moved))
    for number in range(3, 12):
        store.put(death(number, [*own(f"leaf{number}", f"middle{number}"), *ENTRY]))
    found = read(capsys, "signature", id_of(store, 1))
    assert [one["signature"] for one in found["similar"]] == [id_of(store, 2)]
    assert set(found["similar"][0]["shared"]) >= {"serve_request", "rare_path"}


def test_a_note_is_kept_and_shown_at_the_next_death(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    store.put(death(1, COUNT))
    first = id_of(store, 1)
    # WHEN somebody writes what he knows
    said = shown(capsys, "note", first, "fixed  in\n2.3", "--fixed-in", NEW_BUILD[:12])
    assert said.startswith(f"{first}: fixed in 2.3 (fixed in 777777777777), noted 20")
    # THEN it is with the signature
    assert read(capsys, "note", first)["note"]["builds"] == [BUILD]
    assert shown(capsys, "signatures").splitlines()[1].endswith("count_request  [fixed in 2.3]")
    assert "fixed in 2.3 (fixed in 777777777777), noted" in shown(capsys, "signature", first)
    # AND a death of the old build shows it, and is no regression; one of a build with the fix is
    note = store.notes.read(first)
    for build, again in ((BUILD, False), (NEW_BUILD, True), ("55" * 20, True)):
        frames = [replace(one, build_id=build) for one in COUNT]
        signature = noted(death(2, frames), note).signature
        assert signature is not None
        assert (signature.note, signature.regression) == ("fixed in 2.3", again)
    store.put(noted(death(3, COUNT), note))
    assert "  known         fixed in 2.3\n" in shown(capsys, "info", f"{3:016x}")
    # AND it can be taken away
    assert shown(capsys, "note", first, "--remove") == f"{first}: its note is gone\n"
    assert read(capsys, "note", first)["note"] is None


def test_a_note_outlives_its_deaths(
    store: Store, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # GIVEN a signature with a note, of which nothing else is left
    store.put(death(1, COUNT))
    first = id_of(store, 1)
    shown(capsys, "note", first, "fixed in 2.3")
    store.remove(f"{1:016x}")
    store.close()
    Store(store.path, create=True).close()
    # THEN it is found and can be taken away, and no other is
    assert read(capsys, "note", first[:8])["note"]["text"] == "fixed in 2.3"
    assert refused(capsys, "signature", first)[0] == 1
    assert refused(capsys, "note", "zz")[0] == 1
    shown(capsys, "note", first, "--remove")
    assert refused(capsys, "note", first)[0] == 1


def test_a_note_without_a_fix_makes_no_regression() -> None:
    note = Note(text="look at the allocator", time=TIME)
    signature = noted(death(1, COUNT), note).signature
    assert signature is not None
    assert (signature.note, signature.regression) == ("look at the allocator", False)
    assert noted(death(1, COUNT), None) == death(1, COUNT)
    # AND without a build nothing is claimed
    fixed = replace(note, fixed_in="2.3")
    unknown = noted(death(1, [frame("count_request", "/lib/x.so")]), fixed).signature
    assert unknown is not None
    assert not unknown.regression


@pytest.mark.parametrize(
    ("words", "status", "problem"),
    [
        (("note", "latest"), 1, "has no note; give a text to write one"),
        (("note", "latest", " "), 2, "expected a text of 1 to 500 characters"),
        (("note", "latest", "x" * 501), 2, "expected a text of 1 to 500 characters"),
        (("note", "latest", "--fixed-in", "2"), 2, "--fixed-in goes with a text"),
        (("note", "latest", "x", "--fixed-in", ""), 2, "expected a build-id or a version"),
        (("note", "latest", "x", "--remove"), 2, "give either a text or --remove"),
        (("note", "latest", "--remove"), 1, "has no note"),
        (("note", "zz", "x"), 1, "no signature begins with 'zz'; `coreward signatures` shows all"),
        (("signature", "zz"), 1, "no signature begins with 'zz'"),
        (("list", "--signature", "zz"), 1, "no signature begins with 'zz'"),
        (("signatures", "--dry-run"), 2, "--dry-run: goes with --rebuild"),
        (("signatures", "--limit", "-1"), 2, "must not be negative"),
        (("signatures", "--config", "/nonexistent"), 2, "/nonexistent: cannot be read"),
    ],
)
def test_what_is_wrong_is_said(
    store: Store,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    status: int,
    problem: str,
) -> None:
    store.put(death(1, COUNT))
    found, said = refused(capsys, *words)
    assert (found, problem in said) == (status, True), said


def test_a_damaged_note_is_named_and_hides_no_signature(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    store.put(death(1, COUNT))
    first = id_of(store, 1)
    shown(capsys, "note", first, "x")
    (store.path / "notes" / f"{first}.json").write_text("{")
    assert main(["signatures"]) == 0
    out, err = capsys.readouterr()
    assert "count_request" in out
    assert f"{first}.json: damaged" in err


def test_a_rebuild_names_all_deaths_anew_and_says_what_moved(
    store: Store, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # GIVEN deaths whose signature is the program's own panic(), one that was named by its place, a
    # record of an older coreward, and one that is still being worked on
    site = CrashSite(build_id=BUILD, offset=0x11F5)
    facts = {"signal": 6, "signal_name": "SIGABRT", "si_code": -6}
    drop = [*ABORT, *own("shop_panic", "drop_twice"), *ENTRY]
    lose = [*ABORT, *own("shop_panic", "lose_request"), *ENTRY]
    for number, frames in enumerate((drop, drop, lose), 1):
        store.put(death(number, frames, **facts))
    like = store.get(f"{1:016x}").signature
    assert like is not None
    bare = death(4, None, site=site, **facts)
    store.put(replace(bare, signature=replace(like, basis=bare.signature.basis)))  # type: ignore[union-attr]
    store.put(replace(death(5, COUNT), signature=None))
    store.put(replace(numbered(6), frames=COUNT))
    panic = id_of(store, 1)
    shown(capsys, "note", panic, "look at shop_panic")
    assert [one["deaths"] for one in read(capsys, "signatures")] == [4]
    # WHEN the policy learns that shop_panic() is how the program gives up
    config = tmp_path / "coreward.yaml"
    config.write_text("signature: {sentinels: [shop_panic]}\n")
    # THEN the list says that it is of other rules
    words = ("--config", str(config))
    assert "coreward signatures --rebuild" in shown(capsys, "signatures", *words)
    # AND nothing changes until it is asked for
    before = {record.id: record for record in store.list()}
    said = shown(capsys, "signatures", "--rebuild", "--dry-run", *words).splitlines()
    assert said[0] == "5 deaths, of which 5 would have another signature"
    assert {record.id: record for record in store.list()} == before
    # WHEN it is
    done = read(capsys, "signatures", "--rebuild", *words)
    # THEN each death has its bug, the one that was not unwound that of its like
    drop_id, lose_id = id_of(store, 1), id_of(store, 3)
    assert {(m["before"], m["after"], m["records"]) for m in done["moved"]} == {
        (panic, drop_id, 3),
        (panic, lose_id, 1),
        (None, id_of(store, 5), 1),
    }
    assert id_of(store, 4) == drop_id
    assert store.get(f"{6:016x}").signature is None
    texts = {one["text"] for one in read(capsys, "signatures", *words)}
    assert texts == {
        "SIGABRT abort | drop_twice",
        "SIGABRT abort | lose_request",
        "SIGSEGV near-null | count_request",
    }
    # AND the note went with both parts
    assert done["notes"] == 1
    notes = [store.notes.read(id) for id in (drop_id, lose_id)]
    assert [note.text for note in notes if note] == ["look at shop_panic"] * 2
    assert store.notes.read(panic) is None
    # AND a second time there is nothing to do
    again = read(capsys, "signatures", "--rebuild", *words)
    assert (again["kept"], again["moved"]) == (5, [])
    assert "--rebuild" not in shown(capsys, "signatures", *words)


def test_many_deaths_are_counted_quickly(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    # GIVEN 3,000 deaths of 30 signatures
    sample = death(1, COUNT)
    with store.batch():
        for number in range(3000):
            signature = replace(sample.signature, id=f"{number % 30:012x}")  # type: ignore[type-var]
            moment = TIME + datetime.timedelta(seconds=number)
            record = replace(sample, id=f"{number:016x}", time=moment, signature=signature)
            store.put(record)
    started = time.process_time()
    found = read(capsys, "signatures")
    # THEN no record is read for it
    assert (len(found), sum(one["deaths"] for one in found)) == (30, 3000)
    assert time.process_time() - started < 1
    assert msgspec.json.decode(msgspec.json.encode(found)) == found
