"""A guard for reads of another process's memory, which may never return.

A page backed by userfaultfd(2) or FUSE appears only when its owner supplies it. Until then
process_vm_readv(2) blocks, and only SIGKILL of the reader interrupts it, not even Ctrl-C. Where the
page is of a file, read(2) of /proc/PID/mem and cmdline blocks too (behind userfaultfd(2) these
fail). So the read runs in a thread of its own, and a thread that stalls is abandoned. While a
process is stopped for a read, ask /proc/PID/pagemap first instead.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from collector.errors import Stalled
from collector.linux import procfs

T = TypeVar("T")
LOOK_S = 1.0  # the caller looks at the thread every so many seconds
LOOKS = 5  # a thread that has not run between so many looks, and the one before, has stalled
_JOIN_S = 1.0


def with_stall_guard(whose: Callable[[], int | None], work: Callable[[], T]) -> T:
    """The result of `work`, or its exception. Raises Stalled.

    `whose`: returns the pid of the process whose memory `work` reads at the moment; None: it waits
    for something else. A stall is noticed after LOOKS * LOOK_S to (LOOKS + 2) * LOOK_S seconds.
    """
    results: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def attempt() -> None:
        try:
            results.put((work(), None))
        except BaseException as error:
            results.put((None, error))

    thread = threading.Thread(target=attempt, name="stall-guard", daemon=True)
    thread.start()
    asleep, before = 0, None
    while True:
        try:
            result, error = results.get(timeout=LOOK_S)
        except queue.Empty:
            pid, switches = whose(), _switches_asleep(thread)
            asleep = asleep + 1 if switches is not None and switches == before else 0
            before = switches
            if pid is None or asleep < LOOKS:
                continue
            raise Stalled(pid) from None
        except KeyboardInterrupt:
            thread.join(_JOIN_S)  # as a rule it ends in a moment, and what it uses is whole again
            raise
        if error is not None:
            raise error
        return result  # type: ignore[return-value]


def _switches_asleep(thread: threading.Thread) -> int | None:
    """The context switches of a thread that sleeps: a new number whenever it has run meanwhile.

    None if it is running or gone.
    """
    status = procfs.read(f"/proc/self/task/{thread.native_id}/status") or b""
    if (procfs.field(status, b"State") or b"R").strip().startswith(b"R"):
        return None
    return procfs.number(status, b"voluntary_ctxt_switches")
