"""Open files of a process: the native part lists what /proc says, and Python reads that list."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.linux.open_files import MOST, decode, open_files
from collector.native import contract

FOLDER = Path(contract.__file__).parent
MAIN = r"""
#include <fcntl.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#include "native.h"

void forget(int fd) { if (fd >= 0) close(fd); }

int64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

int main(int argc, char **argv)
{
    static char to[1 << 20];
    struct bytes text;

    list_descriptors(open(argv[1], O_PATH | O_DIRECTORY), to, strtoul(argv[2], NULL, 10), &text);
    return argc != 3 || write(1, to, text.size) != (ssize_t)text.size;
}
"""
PLENTY = 1 << 20


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One with all the time in the world, and one with none."""
    folder = tmp_path_factory.mktemp("descriptors")
    (folder / "main.c").write_text(MAIN)
    sources = [str(folder / "main.c"), str(FOLDER / "descriptors.c")]
    flags = ["-D_GNU_SOURCE", f"-I{FOLDER}", f"-I{FOLDER.parents[1] / 'bpf'}"]
    made = {"patient": folder / "patient", "late": folder / "late"}
    for name, limit in (("patient", "3600000000000"), ("late", "-1")):
        command = ["gcc", *flags, f"-DLIST_NS=INT64_C({limit})", *sources, "-o", str(made[name])]
        subprocess.run(command, check=True)
    return made


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds whatever it was given until it is let go."""
    with subprocess.Popen(
        ["sh", "-c", "echo; read x"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def listed(program: Path, pid: int, room: int = PLENTY) -> bytes:
    command = [str(program), f"/proc/{pid}", str(room)]
    return subprocess.run(command, check=True, capture_output=True).stdout


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[None]:
    """Files of all kinds with all kinds of names, that a child inherits."""
    odd = tmp_path / "a name\nof two lines \udcff"
    deep = tmp_path / ("d" * 250)
    deep.mkdir()
    removed = tmp_path / "removed"
    fds = [os.open(path, os.O_CREAT | os.O_RDWR) for path in (odd, deep / ("f" * 250), removed)]
    removed.unlink()
    fds += [os.memfd_create("own", 0), os.eventfd(0), *os.pipe(), socket.socket().detach()]
    for fd in fds:
        os.set_inheritable(fd, True)
    yield
    for fd in fds:
        os.close(fd)


def test_what_is_listed_is_what_proc_says(
    programs: dict[str, Path], opened: None, holder: subprocess.Popen[bytes]
) -> None:
    found, count = decode(listed(programs["patient"], holder.pid))
    expected, number = open_files(holder.pid)
    assert found == expected
    # Linux tells the number since 6.2
    assert count in (None, number)
    assert {one.kind for one in found} >= {"file", "memfd", "eventfd", "pipe", "socket"}


def test_of_many_the_lowest_are_listed(programs: dict[str, Path]) -> None:
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(MOST + 40)]
    try:
        found, count = decode(listed(programs["patient"], os.getpid()))
        assert found == open_files(os.getpid())[0]
        assert len(found) == MOST
        assert count is None or count > MOST
    finally:
        for fd in fds:
            os.close(fd)


@pytest.mark.parametrize("room", [0, 31, 32, 1000, 2000, 8000])
def test_what_has_no_room_is_left_out(
    programs: dict[str, Path], opened: None, holder: subprocess.Popen[bytes], room: int
) -> None:
    text = listed(programs["patient"], holder.pid, room)
    assert len(text) <= room
    if text:
        found, _ = decode(text)
        whole, _ = open_files(holder.pid)
        assert all(one in whole for one in found)


def test_when_the_time_is_over_the_number_is_still_told(
    programs: dict[str, Path], holder: subprocess.Popen[bytes]
) -> None:
    found, count = decode(listed(programs["late"], holder.pid))
    assert found == []
    assert count in (None, open_files(holder.pid)[1])


def test_a_process_that_has_ended_has_none(programs: dict[str, Path]) -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        found, count = decode(listed(programs["patient"], process.pid))
    assert (found, count) == ([], None)
