"""Looks at a process whose memory may keep its readers waiting for ever.

Memory behind userfaultfd(2) or a FUSE file is there when its owner says so. Until then only the
end of the reader's process interrupts process_vm_readv(2), not even Ctrl-C does; nor, where it is
a file, read(2) of /proc/PID/mem and cmdline (behind userfaultfd(2) they fail). So the look is taken
in a thread, which is left behind if it must be. Where a process stands still for it, ask
/proc/PID/pagemap first instead.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from collector.errors import KeptWaiting
from collector.linux import procfs

T = TypeVar("T")
WAIT_S = 5  # without having run


def patiently(whose: Callable[[], int | None], work: Callable[[], T]) -> T:
    """The result of `work`, or its exception.

    `whose`: tells the pid of the process that it looks at; None: it waits for something else.
    KeptWaiting when it has looked at one for WAIT_S seconds, and slept all the time.
    """
    results: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def attempt() -> None:
        try:
            results.put((work(), None))
        except BaseException as error:
            results.put((None, error))

    thread = threading.Thread(target=attempt, name="patient", daemon=True)
    thread.start()
    waited, before = 0, None
    while True:
        try:
            result, error = results.get(timeout=1.0)
        except queue.Empty:
            pid, sleep = whose(), _sleep(thread)
            waited = waited + 1 if sleep is not None and sleep == before else 0
            before = sleep
            if pid is None or waited < WAIT_S:
                continue
            raise KeptWaiting(pid) from None
        except KeyboardInterrupt:
            thread.join(1.0)  # as a rule it is done in a moment, and what it uses is whole again
            raise
        if error is not None:
            raise error
        return result  # type: ignore[return-value]


def _sleep(thread: threading.Thread) -> bytes | None:
    """What is another one when the thread has run meanwhile; None if it runs, or has ended."""
    status = procfs.read(f"/proc/self/task/{thread.native_id}/status") or b""
    if (procfs.field(status, b"State") or b"R").strip().startswith(b"R"):
        return None
    return procfs.field(status, b"voluntary_ctxt_switches")
