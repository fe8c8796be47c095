"""Processes that load the native part, when that is built under the sanitizers (`make sanitize`).

The runtime of the address sanitizer has to be there before the interpreter. Only processes that
load the library get it: it would take the signals of victims, and slow all others.
"""

from __future__ import annotations

import os

from collector.native.build import SANITIZED

_RUNTIME = os.environ.get("COREWARD_SANITIZER_RUNTIME", "")


def environment() -> dict[str, str]:
    """For an agent."""
    return {**os.environ, "LD_PRELOAD": _RUNTIME} if SANITIZED else dict(os.environ)


def spare_others() -> None:
    """Of those that this process starts only agents get the runtime."""
    if SANITIZED:
        os.environ.pop("LD_PRELOAD", None)
