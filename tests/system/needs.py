"""What some tests need of the kernel, found out by trying it, once, and never from a version.

    @pytest.mark.parametrize("backend", [by_socket("socket"), "pipe"])
    pytestmark = needs("pre-copy")

A test whose need is not met is skipped, and says why. Needs are tried before the first test, while
nobody holds the machine's settings (see conftest.py).
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from collector.errors import CorewardError, HoldError
from collector.handoff.backends import open_backend
from collector.handoff.native import Native
from collector.handoff.settings import SettingsGuard
from collector.model import Backend
from collector.snapshot import userfault
from tests.system.settings import kernel_settings
from tests.system.victims import SLOWNESS

MARK = "needs"


def needs(feature: str) -> pytest.MarkDecorator:
    """A mark for tests that are skipped without this one of `_TRIES`."""
    if feature not in _TRIES:
        raise ValueError(f"{feature}: there are {', '.join(_TRIES)}")
    return pytest.mark.needs(feature)


def by_socket(*values: Any) -> Any:
    """A set of parameters that needs the hand-off by socket."""
    return pytest.param(*values, marks=needs("socket hand-off"))


@functools.cache
def missing(feature: str) -> str | None:
    """Why the feature is not there; None: it is."""
    try:
        _TRIES[feature]()
    except CorewardError as error:
        return f"{feature}: {error}"
    return None


def _hand_over_a_crash() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="cs-") as name,
        kernel_settings(core_pattern="core", core_pipe_limit="0"),
        open_backend(
            *(Backend.SOCKET, Path(name, "run"), SettingsGuard(Path(name, "state"))),
            *(Native(), False),
        ),
    ):
        return


def _be_quick() -> None:
    if SLOWNESS > 1:
        raise HoldError(f"tests are told that this machine may be {SLOWNESS:g} times slower")


_TRIES: dict[str, Callable[[], object]] = {
    "socket hand-off": _hand_over_a_crash,
    "pre-copy": userfault.check_available,
    "usual speed": _be_quick,  # where times are judged
}
