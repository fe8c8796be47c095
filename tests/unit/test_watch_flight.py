"""The file of a process's last samples."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
import zstandard

from collector import packed
from collector.errors import NotFound, StoreError
from collector.sample.ring import SampleRing
from collector.watch import flight
from tests.unit.sample_builders import IDENTITY, frame, kept, sample, thread


def made(folder: Path) -> flight.Flight:
    """A flight of three samples over a sparse context."""
    ring = SampleRing(10, 1 << 20)
    for second in range(3):
        ring.add(sample(second, thread(stack=b"k", runtime_ns=second)), {b"k": kept()})
    context = os.memfd_create("context")
    try:
        os.pwrite(context, b"head", 0)
        os.pwrite(context, b"tail", 1 << 20)
        return flight.flight_of(
            "rule", IDENTITY, ring, {0: context, 9: -1}, {b"k": (frame("f"),)}, {}
        )
    finally:
        os.close(context)


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    whole = made(tmp_path)
    flight.write(whole, tmp_path)
    again = flight.read(tmp_path)
    assert again == whole
    # AND holes of the context are not in it, and no context that nothing stands on
    assert set(again.contexts) == {0}
    assert sum(len(data) for _, data in again.contexts[0].pieces) < 1 << 16
    assert (tmp_path / flight.FILE).stat().st_mode & 0o777 == 0o600
    assert (again.facts.count, again.facts.seconds, again.facts.rule) == (3, 2.0, "rule")
    assert [place.samples for place in again.report().places] == [3]


def test_numbers_of_samples(tmp_path: Path) -> None:
    whole = made(tmp_path)
    assert [whole.number(n) for n in (1, 3, -1, -3)] == [0, 2, 2, 0]
    for wrong in (0, 4, -4):
        with pytest.raises(NotFound, match="they are 1 to 3, or -3 to -1"):
            whole.number(wrong)


@pytest.mark.parametrize(
    "change", [{"version": 2}, {"samples": ()}, {"samples": 7}, {"stacks": {b"k": "x"}}]
)
def test_what_is_no_such_file_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    fields = msgspec.structs.asdict(made(tmp_path))
    packed = zstandard.compress(msgspec.msgpack.encode({**fields, **change}))
    (tmp_path / flight.FILE).write_bytes(packed)
    with pytest.raises(StoreError, match=flight.FILE):
        flight.read(tmp_path)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"")
    (tmp_path / flight.FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="cannot be read"):
        flight.read(tmp_path)


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_MAX_FILE", 1 << 16)
    (tmp_path / flight.FILE).write_bytes(zstandard.compress(bytes(1 << 20)))
    with pytest.raises(StoreError, match="larger than 65536 bytes"):
        flight.read(tmp_path)
