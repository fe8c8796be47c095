"""Our core against the kernel's own core of the same process, at the same moment.

The kernel streams its core into the socket while we gather the same process from BPF and /proc/mem:
one death, two cores. They must agree in every thread's registers, in the mappings and in memory.
"""

from __future__ import annotations

import os
import re
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from collector.capture.dying import exit_patches
from collector.capture.job import Explainable, Job, Written
from collector.capture.process import OpenProcess
from collector.capture.run import write_core
from collector.elfcore.reader import CoreFile
from collector.elfcore.types import Segment, Thread
from collector.handoff.coredump_socket import SocketBackend
from collector.handoff.handoff import HandOff
from collector.model import Capture, FatalSignal
from collector.policy.types import Codec, Compress, MemoryChoice
from collector.probe import Probe, exit_words, open_probe
from collector.probe.iterators import unlinked_shared
from tests.system.settings import kernel_settings
from tests.system.victims import build, running

CHUNK = 1 << 20
GDB = ["gdb", "-batch", "-nx", "-ex", "thread apply all bt", "-ex", "info sharedlibrary"]
GDB += [str(build("mixed")), "-c"]


class TwoCores(msgspec.Struct):
    """The kernel's and ours; `kernel` is the file of the whole stream."""

    kernel: Path
    ours: Path
    written: Written


@pytest.fixture(scope="module", params=["core", "bcc"])
def probe(request: pytest.FixtureRequest) -> Iterator[Probe]:
    pins = Path(f"/sys/fs/bpf/coreward-test-equality-{os.getpid()}")
    with open_probe(request.param, pins) as opened:
        yield opened
        opened.unpin()


def two_cores(
    probe: Probe,
    folder: Path,
    victim: str,
    *arguments: str,
    capture: Capture = Capture.FULL,
    codec: Codec = Codec.NONE,
) -> TwoCores:
    """Let a victim die and keep both cores of it."""
    with kernel_settings() as settings:
        backend = SocketBackend(folder / "core.sock")
        try:
            settings.write("core_pattern", backend.pattern)
            with running(victim, *arguments, cwd=folder) as process:
                probe.drain()
                process.go()
                select.select([backend.fileno()], [], [], 60)
                handoff = backend.accept()
                assert handoff is not None
                with handoff:
                    return capture_both(probe, handoff, folder, capture, codec)
        finally:
            backend.close()


def capture_both(
    probe: Probe, handoff: HandOff, folder: Path, capture: Capture, codec: Codec
) -> TwoCores:
    handoff.answer(stream=True)
    kernel = folder / "kernel.core"
    with OpenProcess(handoff.pid, with_maps=False) as dying:
        fatal = next(
            e for e in probe.drain() if isinstance(e, FatalSignal) and e.who.key.pid == handoff.pid
        )
        threads, mappings = probe.threads(handoff.pid), probe.mappings(handoff.pid)
        words = [(w.clear_child_tid, w.robust_list) for w in exit_words(threads)]
        job = Job(
            record_id="0" * 16,
            folder=str(folder),
            pid=handoff.pid,
            tid=fatal.who.ns_tid,
            signal=fatal.signal,
            siginfo=fatal.siginfo,
            text=dying.text,
            threads=threads,
            mappings=mappings,
            head=None,
            patches=exit_patches(handoff.pid, dying.pagemap_fd, words),
            mem_fd=dying.mem_fd,
            pagemap_fd=dying.pagemap_fd,
            shared_fds=dying.open_shared(unlinked_shared(mappings)),
            capture=capture,
            memory=MemoryChoice(),
            compress=Compress(codec=codec),
            max_bytes=None,
            min_free=0,
            explain=False,
            urgent=True,
        )
        save_stream(handoff.stream_fd(), kernel)
        answer = write_core(job, unexpected)
    assert isinstance(answer, Written), answer
    assert answer.name is not None
    return TwoCores(kernel, folder / answer.name, answer)


def unexpected(answer: Explainable) -> None:
    raise AssertionError(f"nobody asked for {answer}")


def save_stream(fd: int, path: Path) -> None:
    os.set_blocking(fd, True)
    with path.open("wb") as file:
        while data := os.read(fd, CHUNK):
            file.write(data)


def plain_thread(thread: Thread) -> Thread:
    """Without what only one source tells, and without the times, which go on meanwhile."""
    return msgspec.structs.replace(
        thread, name="", state="", extra=(), utime=0, stime=0, cutime=0, cstime=0
    )


def dumped(core: CoreFile) -> dict[int, Segment]:
    return {p.segment.vaddr: p.segment for p in core.segments}


def differences(kernel: CoreFile, ours: CoreFile) -> list[str]:
    """Addresses where memory that the kernel's core holds is different in ours."""
    found = []
    for segment in dumped(kernel).values():
        at = segment.vaddr
        while at < segment.vaddr + segment.filesz:
            size = min(CHUNK, segment.vaddr + segment.filesz - at)
            if kernel.read(at, size) != ours.read(at, size):
                one, two = kernel.read(at, size), ours.read(at, size)
                where = next(i for i in range(size) if one[i] != two[i])
                found.append(f"{at + where:#x}")
            at += size
    return found


@pytest.mark.parametrize("codec", [Codec.NONE, Codec.ZSTD])
def test_mixed_mappings_and_fifty_threads(probe: Probe, tmp_path: Path, codec: Codec) -> None:
    # GIVEN two cores of one process with 50 threads and every kind of mapping
    cores = two_cores(probe, tmp_path, "mixed", str(tmp_path / "mapped.bin"), codec=codec)

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


def test_debuggers_take_it_as_they_take_the_kernels(probe: Probe, tmp_path: Path) -> None:
    # GIVEN two cores of one process
    cores = two_cores(probe, tmp_path, "mixed", str(tmp_path / "mapped.bin"))

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
    cores = two_cores(
        probe, tmp_path, "mixed", str(tmp_path / "mapped.bin"), capture=Capture.STACKS
    )

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
