"""What a mount and the holder of a snapshot say to each other."""

from __future__ import annotations

import socket
import threading

import pytest

from collector.model import SnapshotMode
from collector.mount.wire import HoldJob, Ready, receive_message, send_message
from collector.redact.types import MOST_GLOBS, Redact


def test_all_that_a_policy_redacts_arrives() -> None:
    # GIVEN as many globs as there may be, as long as a policy file has room for
    globs = tuple(f"{number}" + "\x01" * 16_000 for number in range(MOST_GLOBS))
    redact = Redact(mappings=globs)
    job = HoldJob(
        pid=1, start_ns=1, mode=SnapshotMode.FULL_STOP, max_age=1.0, viewer=None, redact=redact
    )
    one, other = socket.socketpair()
    with one, other:
        sender = threading.Thread(target=send_message, args=(one, job))
        sender.start()
        # THEN they arrive
        assert receive_message(other, HoldJob) == job
        sender.join()


def test_a_holder_that_says_too_much_is_not_listened_to() -> None:
    one, other = socket.socketpair()
    with one, other:
        one.sendall((1 << 20).to_bytes(4, "little"))
        with pytest.raises(ValueError, match="a message of 1048576 bytes"):
            receive_message(other, Ready)
