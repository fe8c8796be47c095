"""Who has a process's memory."""

from __future__ import annotations

import os
import subprocess

from collector.linux.leader import with_memory


def test_it_is_the_process_while_its_main_thread_lives() -> None:
    assert with_memory(os.getpid()) == os.getpid()


def test_a_process_that_has_ended_has_none() -> None:
    with subprocess.Popen(["true"], stdin=subprocess.PIPE) as child:
        child.wait()
        assert with_memory(child.pid) == child.pid
