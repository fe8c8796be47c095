"""Files behind shared mappings stay open only while descriptors are left for everything else."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from collector.native.build import build_library
from collector.native.contract import FILES, SHARED, Bytes, Taken
from collector.probe.iterators import MAPPING

MAX_SHARED = 1024  # native.h
FEW = 16  # shared.c
LIMIT = 16384  # RLIMIT_NOFILE
MAX_CODE = 64  # shared.c
OWN_FS, VM_EXEC, VM_SHARED = 32, 4, 8
PAGE = 4096


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return ctypes.CDLL(str(build_library(tmp_path_factory.mktemp("native"), inside=True)))


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] < LIMIT:
        pytest.skip("RLIMIT_NOFILE is too low")
    resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def use(descriptors: int, stack: ExitStack) -> None:
    """Have at least so many descriptors open, without a gap."""
    while (fd := os.open("/dev/null", os.O_RDONLY)) < descriptors:
        stack.callback(os.close, fd)
    os.close(fd)


def opened(
    library: ctypes.CDLL, folder: Path, mappings: int, vm_flags: int = VM_SHARED, links: int = 0
) -> tuple[list[tuple[int, int]], int]:
    """Of a process with so many mappings: the starts of those whose file was opened, with 1 for
    code, and how many were not. Nothing stays open."""
    (folder / "map_files").mkdir()
    starts = [PAGE * (1 + 2 * number) for number in range(mappings)]
    for start in starts:
        (folder / f"map_files/{start:x}-{start + PAGE:x}").touch()
    raw = b"".join(
        MAPPING.pack(
            *(MAPPING.size, OWN_FS, start, start + PAGE, vm_flags, 0, 1, 1, links, 0, 0, 0, 0, 0)
        )
        for start in starts
    )
    room = ctypes.create_string_buffer(MAX_SHARED * SHARED.size)
    records = ctypes.create_string_buffer(raw, len(raw))
    taken = Taken(
        mappings=Bytes(ctypes.addressof(records), len(raw)),
        shared=Bytes(ctypes.addressof(room), 0),
    )
    taken.fds[FILES.index("dir_fd")] = directory = os.open(folder, os.O_RDONLY)
    library.open_shared(ctypes.byref(taken))
    os.close(directory)
    found = list(SHARED.iter_unpack(taken.shared.copy()))
    for _, fd, _ in found:
        os.close(fd)
    return [(start, code) for start, _, code in found], taken.unopened


@pytest.mark.parametrize(
    ("used", "mappings", "kept"),
    [
        (0, 3, 3),
        (0, MAX_SHARED + 7, MAX_SHARED),
        (LIMIT // 8 - 100, 200, 100),
        (LIMIT // 8, 200, FEW),
        (LIMIT // 4 - 10, 200, 10),
        (LIMIT // 4, 3, 0),
    ],
)
def test_they_take_a_bounded_part_of_all_descriptors(
    library: ctypes.CDLL, tmp_path: Path, used: int, mappings: int, kept: int
) -> None:
    with ExitStack() as stack:
        # GIVEN an agent that has so many descriptors open
        use(used - 1, stack)  # the folder's is one more
        # WHEN a process dies that has so many shared mappings
        starts, unopened = opened(library, tmp_path, mappings)
    # THEN the files of the first ones are kept open, and it is known how many are not
    assert starts == [(PAGE * (1 + 2 * number), 0) for number in range(kept)]
    assert unopened == mappings - kept


def test_code_without_a_name_is_kept_open_as_well(library: ctypes.CDLL, tmp_path: Path) -> None:
    # GIVEN a process with more mapped libraries that were deleted than are wanted
    for folder in ("deleted", "shared", "there"):
        (tmp_path / folder).mkdir()
    starts, unopened = opened(library, tmp_path / "deleted", MAX_CODE + 3, VM_EXEC)
    # THEN the first ones are opened, and the others count for nothing
    assert starts == [(PAGE * (1 + 2 * number), 1) for number in range(MAX_CODE)]
    assert unopened == 0
    # AND shared memory that can be executed is shared memory; what has a name is not opened
    found, _ = opened(library, tmp_path / "shared", 1, VM_EXEC | VM_SHARED)
    assert found == [(PAGE, 0)]
    assert opened(library, tmp_path / "there", 1, VM_EXEC, links=1) == ([], 0)
