"""`python -m collector.mount.holder FD`: a process that holds one snapshot, and reads parts of it.

It is one of its own, because reading the memory of others may take as long as they like, and it is
a tracer: when it ends, however that happens, the copy of the process that it holds ends too. FD is
a socket (see wire.py). It loads what it needs before it asks for its job: somebody waits for that.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from collector.elfcore.image import CoreImage
from collector.errors import CaptureError, CorewardError, ProbeError
from collector.linux import pidfd, prctl
from collector.model import ProcessKey
from collector.mount.processes import may_see, waits
from collector.mount.wire import (
    DATA_AT,
    HAVE,
    MAX_READ,
    WANT,
    HoldJob,
    Ready,
    receive,
    receive_message,
    send_message,
)
from collector.probe.live import LiveProbe, open_live
from collector.snapshot.take import Found, SnapshotRequest, take, usual_capture
from collector.snapshot.write import CoreContents, image_of, in_words, reading

_LAST_TIME = 10.0  # seconds that it has to end by itself when nobody wants it any more


class _Holder:
    def __init__(self, job: HoldJob, end: socket.socket, live: LiveProbe | None) -> None:
        self._job, self._end, self._live = job, end, live
        self._pidfd = os.pidfd_open(job.pid)
        self.is_ready = False

    def run(self) -> None:
        """Take the snapshot and answer until nobody wants it, or it is too old."""
        job = self._job
        if job.door is not None:
            self._show_held(Path(job.door))
            return
        request = SnapshotRequest(mode=job.mode, lazy=True)
        take(job.pid, request, self._serve, self._live, key=ProcessKey(job.pid, job.start_ns))

    def _serve(self, found: Found) -> None:
        if not may_see(found.holder, self._job.viewer):
            raise CaptureError(f"process {self._job.pid} is not this user's any more")
        found.check()
        image = image_of(found, self._contents())

        def check() -> None:
            found.check()
            if found.holder == self._job.pid and pidfd.has_ended(self._pidfd):
                raise CaptureError(f"process {self._job.pid} has ended")

        self._answer_all(image, in_words(found.facts), check, lambda: reading(found))

    def _contents(self) -> CoreContents:
        job = self._job
        return CoreContents(capture=usual_capture(job.mode), redact=job.redact)

    def _show_held(self, door: Path) -> None:
        """The same of a process that stands still, for a dumper has it: nothing is taken of it."""
        from collector.dumpers.core import core_of  # noqa: PLC0415 - most holders need none of it
        from collector.dumpers.look import Look  # noqa: PLC0415

        job = self._job
        if job.redact.anything:
            raise CaptureError("the policy redacts it, which its dumper does not wait for")
        with Look(door, job.pid) as look:
            key = ProcessKey(job.pid, look.process.start_ns or 0)
            if not key.is_same(ProcessKey(job.pid, job.start_ns)):
                raise CaptureError(f"process {job.pid} is another one by now")
            if not may_see(job.pid, job.viewer):
                raise CaptureError(f"process {job.pid} is not this user's")
            text = f"held for its dumper, dying of signal {look.process.signal}"

            def check() -> None:
                look.check()
                if not waits(job.pid):  # the agent was killed
                    raise CaptureError(f"process {job.pid} is not held any more")

            self._answer_all(core_of(look.process), text, check, contextlib.nullcontext)

    def _answer_all(
        self,
        image: CoreImage,
        text: str,
        check: Callable[[], None],
        around: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """check: raises if what was read is not of the same process any more. around: each read."""
        send_message(self._end, Ready(size=image.size, text=text))
        self.is_ready = True
        deadline = time.monotonic() + self._job.max_age
        while True:
            try:
                offset, length = WANT.unpack(receive(self._end, WANT.size, deadline))
            except TimeoutError:
                raise CaptureError("it is older than it may be, and was given up") from None
            except EOFError:
                return
            number = 0
            try:
                with around():
                    if length:
                        data = image.read(offset, min(length, MAX_READ))
                    else:
                        found = image.data_at(offset)
                        data = DATA_AT.pack(*found) if found else b""
                    check()  # afterwards: what was there then is what was read
            except (CorewardError, OSError) as error:
                number, data = errno.EIO, str(error).encode()
            self._answer(number, data)

    def _answer(self, number: int, data: bytes) -> None:
        self._end.settimeout(_LAST_TIME)
        self._end.sendall(HAVE.pack(number, len(data)) + data)


def _probe(stack: contextlib.ExitStack) -> LiveProbe | None:
    if os.geteuid() == 0:
        with contextlib.suppress(ProbeError):
            return stack.enter_context(open_live())
    return None


def _leave_with(end: socket.socket) -> None:
    """End when the other side does, at the latest a while after it."""
    poll = select.poll()
    poll.register(end, select.POLLRDHUP | select.POLLHUP)
    poll.poll()
    time.sleep(_LAST_TIME)
    os._exit(1)  # some read does not return


def main() -> None:
    """Wait for a job on the socket that the command line names, and do it."""
    with socket.socket(fileno=int(sys.argv[1])) as end, contextlib.ExitStack() as stack:
        live = _probe(stack)
        try:
            job = receive_message(end, HoldJob)
        except (EOFError, OSError):  # nobody has one any more
            return
        prctl.set_name(b"hold %d" % job.pid)
        threading.Thread(target=_leave_with, args=[end], daemon=True).start()
        error = _hold(job, end, live)
        if error is not None:
            print(f"coreward: snapshot of process {job.pid}: {error}", file=sys.stderr)


def _hold(job: HoldJob, end: socket.socket, live: LiveProbe | None) -> str | None:
    """Why it ended, if nobody was told by an answer."""
    try:
        holder = _Holder(job, end, live)
        try:
            holder.run()
        except (CorewardError, OSError) as error:
            if holder.is_ready:
                return str(error)
            raise
    except (CorewardError, OSError) as error:
        with contextlib.suppress(OSError):
            send_message(end, Ready(error=str(error)))
    return None


if __name__ == "__main__":
    main()
