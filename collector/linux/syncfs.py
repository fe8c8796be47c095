"""syncfs(2): everything of one file system to its disk, at the price of one flush."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from typing import Any


@cache
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def syncfs(descriptor: int) -> None:
    """Write back the file system that an open file is on. OSError if something was not written."""
    if _libc().syncfs(descriptor) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
