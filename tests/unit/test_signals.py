"""Names of signals, for every number that may stand in a record."""

from __future__ import annotations

import pytest

from collector.signals import signal_name


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (None, None),
        (0, "signal 0"),
        (11, "SIGSEGV"),
        (32, "signal 32"),  # the C library's own
        (34, "SIGRTMIN"),
        (40, "SIGRTMIN+6"),
        (63, "SIGRTMIN+29"),
        (64, "SIGRTMAX"),
        (65, "signal 65"),
        (200, "signal 200"),
    ],
)
def test_names(number: int | None, name: str | None) -> None:
    assert signal_name(number) == name
