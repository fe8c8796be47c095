"""Files beside a record, made by a stranger: they take no more memory than they may."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import zstandard

from collector import packed
from collector.errors import StoreError
from collector.watch import kept


def many(head: dict[str, object], name: str, one: object, count: int) -> bytes:
    """A document with an array of so many equal values behind the rest."""
    raw = bytearray(msgspec.msgpack.encode({**head, name: None}))
    raw[-1:] = b"\xdd" + count.to_bytes(4, "big") + msgspec.msgpack.encode(one) * count
    return zstandard.compress(bytes(raw), 1)


# In a process of its own: this one has memory to spare that tests before it have left.
READER = """
import resource, sys
from pathlib import Path
from collector import packed
from collector.errors import StoreError
from collector.explain import kept_threads
before = resource.getrlimit(resource.RLIMIT_DATA)
packed._MAX_OBJECTS = 4 << 20
try:
    print(kept_threads.read(Path(sys.argv[1])))
except StoreError as error:
    print(error)
assert resource.getrlimit(resource.RLIMIT_DATA) == before
"""


def read_alone(folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", READER, str(folder)],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(packed.__file__).parents[1],
    )
    return done.stdout


def test_many_small_objects(tmp_path: Path) -> None:
    # GIVEN a quarter of a million frames, in a few hundred bytes on disk
    frames = many({"threads": []}, "frames", {"pc": 0}, 1 << 18)
    (tmp_path / "threads.zst").write_bytes(frames)
    # THEN they are refused, and memory is as before for what follows
    refused = r".*threads.zst: damaged: made to fill memory: .* 4 MiB\n"
    assert re.fullmatch(refused, read_alone(tmp_path))
    # AND a few are read
    (tmp_path / "threads.zst").write_bytes(many({"threads": []}, "frames", {"pc": 0}, 20))
    assert read_alone(tmp_path) == "[]\n"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (zstandard.compress(bytes(2 << 20), 1), "larger than 1048576 bytes"),
        (zstandard.compress(b"\x91" * 100_000, 1), "damaged"),
        (b"text", "damaged"),
    ],
)
def test_damaged_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, why: str
) -> None:
    monkeypatch.setattr(packed, "_MAX_FILE", 1 << 20)
    (tmp_path / "calls.zst").write_bytes(content)
    with pytest.raises(StoreError, match=why):
        kept.read(tmp_path)
