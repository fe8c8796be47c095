"""A snapshot that a trigger asks for, taken by a process of its own, which runs this module.

A snapshot may take long and need much memory, and a sample must not wait for it. The order comes on
standard input, the answer goes to standard output, one JSON document each.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import msgspec

from collector.errors import CorewardError, ProbeError
from collector.linux import children
from collector.model import Capture, ProcessKey, SnapshotMode
from collector.redact.types import Redact

_TIMEOUT_S = 600.0
_MAX_ANSWER = 1 << 18


class SnapshotOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What to take, and what its record says of why."""

    store: str
    key: ProcessKey
    rule: str
    trigger: str
    mode: SnapshotMode
    capture: Capture | None
    min_free: int  # bytes that stay free on the store's file system
    redact: Redact = Redact()


class SnapshotAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The id of the record, or why there is none."""

    record: str | None = None
    error: str | None = None


def trigger_snapshot(order: SnapshotOrder) -> str:
    """Take it; returns the id of its record. Blocks. CorewardError says why it could not be."""
    try:
        output = _output_of(order)
        answer = msgspec.json.decode(output[:_MAX_ANSWER], type=SnapshotAnswer)
    except subprocess.TimeoutExpired as error:
        raise CorewardError(f"the snapshot took longer than {_TIMEOUT_S:.0f} s") from error
    except (OSError, msgspec.MsgspecError) as error:
        raise CorewardError(f"the snapshot's process failed: {error}") from error
    if answer.record is None:
        raise CorewardError(answer.error or "the snapshot failed")
    return answer.record


def _output_of(order: SnapshotOrder) -> bytes:
    """What the process says that takes it. One that is out of time may hang in the kernel."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-s", "-m", "collector.watch.trigger_snapshot"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        return process.communicate(msgspec.json.encode(order), _TIMEOUT_S)[0]
    finally:
        children.kill(process)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _main() -> None:
    # only this process needs all of it
    from collector.capture.helper import become_helper  # noqa: PLC0415
    from collector.probe.live import open_live  # noqa: PLC0415
    from collector.snapshot.store_snapshot import TriggerContext, store_snapshot  # noqa: PLC0415
    from collector.snapshot.take import SnapshotRequest, usual_capture  # noqa: PLC0415
    from collector.snapshot.write import CoreContents  # noqa: PLC0415
    from collector.store.store import Store  # noqa: PLC0415
    from collector.watch.door import kept_calls  # noqa: PLC0415

    become_helper(urgent=True)
    order = msgspec.json.decode(sys.stdin.buffer.read(_MAX_ANSWER), type=SnapshotOrder)
    trigger = TriggerContext(key=order.key, rule=order.rule, trigger=order.trigger)
    try:
        try:
            live = open_live()
        except ProbeError:
            live = None
        with Store(Path(order.store), create=False) as store:
            record = store_snapshot(
                store,
                order.key.pid,
                SnapshotRequest(mode=order.mode, min_free=order.min_free),
                CoreContents(
                    capture=order.capture or usual_capture(order.mode), redact=order.redact
                ),
                live,
                trigger=trigger,
                keep_calls=partial(kept_calls, store.path),
            )
        answer = SnapshotAnswer(record=record.id)
    except (CorewardError, OSError) as error:
        answer = SnapshotAnswer(error=str(error))
    sys.stdout.buffer.write(msgspec.json.encode(answer))


if __name__ == "__main__":
    _main()
