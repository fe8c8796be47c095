"""What people and machines see of a heap: `coreward heap`, and the part of `info`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from collector.cli import main
from collector.heap.types import HeapReport
from collector.model import (
    Allocator,
    Frame,
    HeapArena,
    HeapProfile,
    HeapSite,
    HeapSize,
    Outcome,
    Record,
)
from collector.store.store import Store
from tests.unit.store_samples import SEGFAULT

KEEP = Frame(pc=1, function="main.keep\x1b[m", file="/src/cart.go", line=26)
GO = HeapProfile(
    allocator=Allocator.GO,
    version="go1.19.8",
    in_use=3 << 20,
    objects=1234,
    rate=512 << 10,
    sites=[
        HeapSite(in_use=2 << 20, objects=1000, frames=[KEEP, Frame(pc=2, function="main.main")]),
        HeapSite(in_use=1 << 20, objects=234, frames=[Frame(pc=0x1234)]),
    ],
    site_count=3,
)
GLIBC = HeapProfile(
    allocator=Allocator.GLIBC,
    version="2.36",
    sizes=[HeapSize(size=1008, count=1050)],
    arenas=[
        HeapArena(address=0x1000, system=4096, in_use=1024, chunks=2, free=0, top=3072),
        HeapArena(address=0x2000, system=2048, lost="its chunks cannot be followed beyond 0x2100"),
    ],
    arena_count=3,
    mapped=2 << 20,
    mapped_count=1,
    lost={"in_use": "1 of 2 arenas", "sizes": "pieces are those that were seen"},
)
WHOLE = """\
go1.19.8: 3.0 MiB in use, 1,234 pieces, estimated from samples (one for 512.0 KiB)

     2.0 MiB      1,000 objects
      main.keep\\x1b[m (cart.go:26)
      main.main

     1.0 MiB        234 objects
      0x1234

  and 1 more
"""
ARENAS = """\
glibc 2.36: how much is in use is not known
   arena  from the kernel   in use  free      top
  0x1000          4.0 KiB  1.0 KiB   0 B  3.0 KiB
  0x2000          2.0 KiB        -     -        -
  0x2000: its chunks cannot be followed beyond 0x2100
  and 1 more
  2.0 MiB in 1 pieces with mappings of their own
   in use  pieces       of
  1.0 MiB   1,050  1,008 B
  pieces are those that were seen
  no in use: 1 of 2 arenas
"""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("COREWARD_STORE", str(tmp_path))
    with Store(tmp_path, create=True) as one:
        yield one


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[HeapReport]:
    """What is read of a core, the next time and each further time; empty: nobody asks."""
    reports: list[HeapReport] = []
    monkeypatch.setattr("collector.heap.run.heap_of_core", lambda *_, **__: reports.pop())
    return reports


def put(store: Store, *, core: bool = True, **facts: object) -> Record:
    record = msgspec.structs.replace(SEGFAULT, outcome=Outcome.COMPLETE, **facts)
    store.put(record)
    if core:
        (store.folder(record.id) / "core").touch()
    return record


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main(words)
    return status, *capsys.readouterr()


def test_a_whole_heap_is_that_of_the_record(
    store: Store, said: list[HeapReport], capsys: pytest.CaptureFixture[str]
) -> None:
    put(store, heap=[GO])
    assert shown(capsys, "heap") == (0, WHOLE, "")
    found = msgspec.json.decode(shown(capsys, "heap", "--json")[1], type=list[HeapProfile])
    assert found == [GO]


def test_what_the_record_lacks_is_read_from_the_core(
    store: Store, said: list[HeapReport], capsys: pytest.CaptureFixture[str]
) -> None:
    # GIVEN a record with a part that was not whole, and one whose file is out of reach now
    put(store, heap=[GO, GLIBC])
    more = msgspec.structs.replace(GLIBC, in_use=5 << 20, objects=7, lost={})
    said.append(HeapReport(profiles=[more], lost={"heap": "its file is gone"}))
    status, out, err = shown(capsys, "heap")
    # THEN both are there, and the first as it is now
    assert (status, err) == (0, "")
    assert out.startswith("glibc 2.36: 5.0 MiB in use, 7 pieces\n")
    assert out.endswith("\n\n" + WHOLE)


def test_a_heap_of_which_something_is_not_known(
    store: Store, said: list[HeapReport], capsys: pytest.CaptureFixture[str]
) -> None:
    put(store)
    said.append(HeapReport(profiles=[GLIBC], lost={"heap": "its file is gone"}))
    assert shown(capsys, "heap") == (0, ARENAS, "coreward: lost: heap: its file is gone\n")


@pytest.mark.parametrize(
    ("report", "why"),
    [
        (HeapReport(lost={"heap": "its memory is gone"}), "its memory is gone"),
        (HeapReport(), "no allocator that is known was found: Go's, glibc's, jemalloc, tcmalloc,"),
    ],
)
def test_no_heap(
    store: Store,
    said: list[HeapReport],
    capsys: pytest.CaptureFixture[str],
    report: HeapReport,
    why: str,
) -> None:
    record = put(store)
    said.append(report)
    status, out, err = shown(capsys, "heap")
    assert (status, out) == (1, "")
    assert err.startswith(f"coreward: record {record.id} has no heap: {why}")


def test_what_a_record_says_of_none() -> None:
    # a program without an allocator lacks nothing; of one that could not be looked at it is said
    assert HeapReport().known == []
    assert HeapReport(lost={"heap": "its memory is gone"}).known is None
    assert HeapReport(profiles=[GLIBC], lost={"heap": "its file is gone"}).known == [GLIBC]


def test_no_core(store: Store, said: list[HeapReport], capsys: pytest.CaptureFixture[str]) -> None:
    # GIVEN a record whose core is gone: what it has of its heap is shown, else there is nothing
    put(store, core=False, heap=[GLIBC])
    assert shown(capsys, "heap") == (0, ARENAS, "")
    record = put(store, core=False)
    status, out, err = shown(capsys, "heap")
    assert (status, out) == (1, "")
    assert err == (
        f"coreward: record {record.id}: its core (core) is gone from the store; `coreward info "
        f"{record.id}` tells what is known\n"
    )


def test_info_has_the_top(
    store: Store, said: list[HeapReport], capsys: pytest.CaptureFixture[str]
) -> None:
    put(store, heap=[GO, msgspec.structs.replace(GLIBC, arenas=GLIBC.arenas * 4)])
    lines = shown(capsys, "info")[1].splitlines()
    at = lines.index("Heap")
    assert lines[at + 1 : at + 4] == [
        "  go1.19.8: 3.0 MiB in use, 1,234 pieces, estimated from samples (one for 512.0 KiB)",
        "       2.0 MiB  main.keep\\x1b[m (cart.go:26) < main.main",
        "       1.0 MiB  0x1234",
    ]
    # (of eight arenas five)
    assert sum(line.startswith(("    0x1000  ", "    0x2000  ")) for line in lines[at:]) == 5
