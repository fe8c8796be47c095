"""Members of a tar archive: plain ones, and files with holes, which cost nothing in it.

A file with holes has GNU's sparse format 1.0: its data begins with a map of the parts that follow.
GNU tar, bsdtar and Python's `tarfile` restore it. A size of the old header's field is written in
base 256 where it has more than 8 GiB, not in a pax record, which `tarfile` would take for the size
with holes. Sources: tar(5), GNU tar's manual, "Storing Sparse Files".
"""

from __future__ import annotations

import tarfile
from collections.abc import Sequence

from collector.ranges import Range

_MODE = 0o600
_CHECKSUM, _MAGIC = slice(148, 156), slice(257, 265)  # in a head
MAX_RUNS = 16384  # parts of one file between holes; smaller holes than others are filled


def padding(size: int) -> bytes:
    """What follows `size` bytes of data, to a whole block."""
    return bytes(-size % tarfile.BLOCKSIZE)


def end(size: int) -> bytes:
    """What ends an archive of `size` bytes: tar(1) wants whole records, of 10 KiB."""
    zeros = 2 * tarfile.BLOCKSIZE
    return bytes(zeros + -(size + zeros) % tarfile.RECORDSIZE)


def plain_head(name: str, size: int, time: int) -> bytes:
    """What comes before the data of a member. time: when it was changed, seconds of the epoch."""
    info = _info(name, size, time)
    try:
        return info.tobuf(tarfile.USTAR_FORMAT)
    except ValueError:  # a long name, or not one of ASCII
        return info.tobuf(tarfile.PAX_FORMAT)


def sparse_head(name: str, size: int, runs: Sequence[Range], time: int) -> bytes:
    """The same of a file of `size` bytes, whose parts [start, end) follow, and nothing else."""
    last = [*runs, (size, size)] if not runs or runs[-1][1] < size else list(runs)
    lines = [len(last), *(number for start, end in last for number in (start, end - start))]
    map_ = "".join(f"{number}\n" for number in lines).encode()
    map_ += padding(len(map_))
    stored = len(map_) + sum(end - start for start, end in runs)
    records = b"".join(
        _record(key, value)
        for key, value in (
            ("GNU.sparse.major", "1"),
            ("GNU.sparse.minor", "0"),
            ("GNU.sparse.name", name),
            ("GNU.sparse.realsize", str(size)),
        )
    )
    extended = _info(f"PaxHeaders/{name}", len(records), time)
    extended.type = tarfile.XHDTYPE
    return b"".join(
        (
            extended.tobuf(tarfile.USTAR_FORMAT),
            records + padding(len(records)),
            _posix(_info(f"GNUSparseFile.0/{name}", stored, time)),
            map_,
        )
    )


def few(runs: Sequence[Range]) -> list[Range]:
    """At most MAX_RUNS parts that hold all of these: the smallest holes between them are filled."""
    if len(runs) <= MAX_RUNS:
        return list(runs)
    gaps = sorted(range(1, len(runs)), key=lambda at: runs[at][0] - runs[at - 1][1], reverse=True)
    kept = set(gaps[: MAX_RUNS - 1])
    found = [runs[0]]
    for at in range(1, len(runs)):
        if at in kept:
            found.append(runs[at])
        else:
            found[-1] = (found[-1][0], runs[at][1])
    return found


def _info(name: str, size: int, time: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, _MODE, time
    return info


def _posix(info: tarfile.TarInfo) -> bytes:
    """A head whose size may be in base 256, yet of POSIX: tar(1) looks for holes only there."""
    head = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    head[_MAGIC] = b"ustar\x0000"
    head[_CHECKSUM] = b" " * 8  # as it counts itself
    head[_CHECKSUM] = b"%06o\0 " % sum(head)
    return bytes(head)


def _record(key: str, value: str) -> bytes:
    """One record of an extended header, which begins with its own length."""
    rest = f" {key}={value}\n".encode()
    length = len(rest) + 1
    while length != len(str(length)) + len(rest):
        length = len(str(length)) + len(rest)
    return str(length).encode() + rest
