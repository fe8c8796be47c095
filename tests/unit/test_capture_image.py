"""The image of a process, from what /proc and the iterators tell."""

from __future__ import annotations

from pathlib import Path

from collector.capture.image import image_of_live
from collector.capture.process import ProcText
from collector.elfcore.types import Thread


def test_the_main_thread_comes_first_whatever_its_number() -> None:
    # GIVEN a process that began just before numbers did so anew
    status = b"Name:\tx\nUid:\t1\t1\t1\t1\nGid:\t1\t1\t1\t1\nNStgid:\t400\t32760\n"
    text = ProcText(
        stat=Path("/proc/self/stat").read_bytes(),
        status=status,
        cmdline=b"",
        auxv=b"",
        cgroup=b"",
        coredump_filter=b"",
        maps=None,
    )
    threads = [Thread(tid=tid, regs=(0,) * 27) for tid in (300, 301, 32760, 32761)]
    # THEN debuggers show its main thread first, and the others in their order
    image = image_of_live(text, threads, [])
    assert [thread.tid for thread in image.threads] == [32760, 300, 301, 32761]
