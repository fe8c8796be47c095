"""Our core against the kernel's own core of the same process, at the same moment.

The kernel streams its core into the socket while we gather the same process from BPF and /proc/mem:
one death, two cores. They must agree in every thread's registers, in the mappings and in memory.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from collector.elfcore.reader import CoreFile
from collector.handoff.coredump_socket import SocketBackend
from collector.model import Capture
from collector.policy.types import Codec
from collector.probe.probe import Probe
from collector.ranges import Range, union
from tests.system.needs import needs
from tests.system.probe_support import opened
from tests.system.settings import kernel_settings
from tests.system.two_cores import Copier, TwoCores, differences, dumped, plain_thread, two_cores
from tests.system.victims import build, deep_files

pytestmark = needs("socket hand-off")

GDB = ["gdb", "-batch", "-nx", "-ex", "thread apply all bt", "-ex", "info sharedlibrary"]
GDB += [str(build("mixed")), "-c"]


@pytest.fixture(scope="module", params=["core"])  # the other loader: test_probe_iterators.py
def probe(request: pytest.FixtureRequest) -> Iterator[Probe]:
    with opened(request.param, "equality") as one:
        yield one


def both_cores(
    probe: Probe,
    folder: Path,
    *words: str,
    capture: Capture = Capture.FULL,
    codec: Codec = Codec.NONE,
    copier: Copier = None,
) -> TwoCores:
    """Those of a victim, by the socket. words: its name and arguments; none: `mixed`."""
    words = words or ("mixed", str(folder / "mapped.bin"))
    with kernel_settings() as settings, closing(SocketBackend(folder / "core.sock")) as backend:
        return two_cores(
            probe, backend, settings, folder, *words, capture=capture, codec=codec, copier=copier
        )


@pytest.mark.parametrize("codec", [Codec.NONE, Codec.ZSTD])
def test_mixed_mappings_and_fifty_threads(probe: Probe, tmp_path: Path, codec: Codec) -> None:
    # GIVEN two cores of one process with 50 threads and every kind of mapping
    cores = both_cores(probe, tmp_path, codec=codec)

    with CoreFile(cores.kernel) as kernel, CoreFile(cores.ours) as ours:
        # THEN threads, their registers and FPU state are the same, the dying one first (the
        # kernel has the others in the order in which they came to rest)
        assert len(ours.threads) == 51
        assert plain_thread(ours.threads[0]) == plain_thread(kernel.threads[0])
        by_tid = {t.tid: plain_thread(t) for t in ours.threads}
        assert by_tid == {t.tid: plain_thread(t) for t in kernel.threads}
        # AND so are the mappings, the sizes dumped of each, and the process's notes
        assert list(dumped(ours).values()) == list(dumped(kernel).values())
        assert ours.siginfo == kernel.siginfo
        assert ours.auxv == kernel.auxv
        assert ours.notes.files == kernel.notes.files
        assert ours.notes.psinfo == kernel.notes.psinfo
        assert ours.notes.xsave_layout == kernel.notes.xsave_layout
        # AND every byte of memory
        assert differences(kernel, ours) == []
    # AND what is zero or was never touched takes no room
    assert cores.ours.stat().st_blocks < cores.kernel.stat().st_blocks


@pytest.mark.parametrize("copier", ["agent", "writer"])
def test_a_copy_of_its_memory_is_as_good(probe: Probe, tmp_path: Path, copier: Copier) -> None:
    # GIVEN two cores of one process, of which ours is of a copy that was made before
    cores = both_cores(probe, tmp_path, copier=copier)

    with CoreFile(cores.kernel) as kernel, CoreFile(cores.ours) as ours:
        # THEN every byte is the same, and nothing is missing
        assert list(dumped(ours).values()) == list(dumped(kernel).values())
        assert differences(kernel, ours) == []
    assert cores.written.lost == {}


@pytest.mark.parametrize(("count", "files"), [(200, 2), (20_000, 1)])
def test_many_mappings_of_few_files(probe: Probe, tmp_path: Path, count: int, files: int) -> None:
    # GIVEN two cores of a process with many mappings, of files with long paths in turn, or of one
    names = deep_files(tmp_path, files) if files > 1 else ["/etc/passwd"]
    cores = both_cores(probe, tmp_path, "mapped_paths", str(count), *names)

    # THEN all have the names that the kernel gives them
    with CoreFile(cores.kernel) as kernel, CoreFile(cores.ours) as ours:
        assert list(dumped(ours).values()) == list(dumped(kernel).values())
        assert len(kernel.notes.files or ()) > count
        assert ours.notes.files == kernel.notes.files
        assert differences(kernel, ours) == []
    assert cores.written.lost == {}


def test_too_many_paths_are_left_out(probe: Probe, tmp_path: Path) -> None:
    # GIVEN two cores of a process whose paths are more than the agent takes
    cores = both_cores(probe, tmp_path, "mapped_paths", "2000", *deep_files(tmp_path, 2))

    # THEN ours has all the memory, some names, and says how many there are not
    with CoreFile(cores.kernel) as kernel, CoreFile(cores.ours) as ours:
        assert list(dumped(ours).values()) == list(dumped(kernel).values())
        assert differences(kernel, ours) == []
        files = ours.notes.files or ()
    unnamed = int(cores.written.lost["mappings"].split()[2])
    missing = 2000 - sum("/ffff" in file.path for file in files)
    assert 0 < missing <= unnamed < missing + 20  # libraries are above them
    assert list(cores.written.lost) == ["mappings"]


@pytest.mark.parametrize("kind", ["anon", "file"])
def test_large_holes_are_the_kernels_zeros(probe: Probe, tmp_path: Path, kind: str) -> None:
    # GIVEN two cores of a process with large holes in its memory, or in a file mapped privately
    # of which it has touched one page
    size, page = 512 << 20, 4096
    file = tmp_path / "holes"
    with file.open("wb") as holes:
        holes.truncate(size)
        for at in (0, size // 2 + page, size - page):
            holes.seek(at)
            holes.write(f"data at {at}".encode().ljust(page, b"."))
    last = {"anon": "4", "file": str(file)}[kind]
    cores = both_cores(probe, tmp_path, "sparse", kind, str(size >> 20), last)

    with CoreFile(cores.kernel) as kernel, CoreFile(cores.ours) as ours:
        # THEN ours is cut into more segments, of the same memory
        assert len(ours.segments) > len(kernel.segments)
        for memory in (True, False):
            assert areas(ours, memory=memory) == areas(kernel, memory=memory)
        # AND every byte is the same
        assert differences(kernel, ours) == []
    assert cores.ours.stat().st_size < size


def areas(core: CoreFile, *, memory: bool) -> list[Range]:
    """What the segments have of the address space, or (memory) hold of it."""
    found = (p.segment for p in core.segments)
    return union((s.vaddr, s.vaddr + (s.filesz if memory else s.memsz)) for s in found)


def test_debuggers_take_it_as_they_take_the_kernels(probe: Probe, tmp_path: Path) -> None:
    # GIVEN two cores of one process
    cores = both_cores(probe, tmp_path)

    # THEN each tool says of ours exactly what it says of the kernel's
    for tool in (
        GDB,
        ["eu-stack", "--core"],
        ["readelf", "-lW"],
    ):
        assert output(tool, cores.ours) == output(tool, cores.kernel)
    for tool in (["eu-readelf", "-n"], ["readelf", "-nW"]):
        assert any("Coreward" in part for part in output(tool, cores.ours))


def test_stacks_core_shows_every_backtrace(probe: Probe, tmp_path: Path) -> None:
    # GIVEN a core of the stacks only, and the kernel's full one
    cores = both_cores(probe, tmp_path, capture=Capture.STACKS)

    # THEN gdb shows the same backtraces and libraries from a fraction of the bytes
    assert output(GDB, cores.ours) == output(GDB, cores.kernel)
    assert cores.written.memory < 8 << 20


def output(tool: list[str], core: Path) -> list[str]:
    """What a tool says of a core, in paragraphs sorted by thread, without the core's own layout."""
    done = subprocess.run([*tool, str(core)], capture_output=True, text=True, check=True)
    warnings = sorted(set(done.stderr.replace(str(core), "CORE").splitlines()))
    text = done.stdout.replace(str(core), "CORE")
    if tool[0] == "readelf":  # offsets differ; kinds, addresses, sizes and flags must not
        lines = [line.split() for line in text.splitlines() if "LOAD" in line]
        return [" ".join(words[:1] + words[2:]) for words in lines] or text.splitlines()
    # in the order of the file, among which other lines stand anywhere
    text = re.sub(r"(?m)^(\[New LWP|\[Thread debugging|Using host).*\n", "", text)
    # threads are numbered in the order of the file; their ids (LWP, TID) name them
    text = re.sub(r"^(Thread|\*?) +?\d+ ", r"\1 ", text, flags=re.MULTILINE)
    start = r"(?m)^(?=Thread |TID |\[Current thread|Core was|From )"
    return sorted(part.strip() for part in re.split(start, text)) + warnings
