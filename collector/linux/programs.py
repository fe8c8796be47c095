"""What another program says, for a moment: whoever asks waits no longer, and keeps no more."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Sequence

from collector.errors import CorewardError
from collector.linux import children


def ask(
    program: str,
    arguments: Sequence[str],
    *,
    seconds: float,
    most: int,
    late: str,
    nice: int | None = None,
) -> bytes:
    """Its standard output, of which `most` bytes are kept. CorewardError says why there is none.

    late: what is to be said if it takes longer than that many seconds. nice: its nice value; None:
    that of this thread.
    """
    path = shutil.which(program)
    if path is None:
        raise CorewardError(f"{program} is not there")
    if nice is None:
        nice = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    try:
        child = children.start(
            [path, *arguments],
            nice,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"LC_ALL": "C", "PATH": os.defpath},
        )
    except OSError as error:
        raise CorewardError(f"{path}: {error.strerror}") from error
    try:
        answer, _ = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise CorewardError(f"{late} within {seconds:g} s") from error
    finally:
        children.kill(child)
        if child.stdout is not None:
            child.stdout.close()
    if child.returncode:
        raise CorewardError(f"{program} ended with status {child.returncode}")
    return bytes(answer[:most])
