"""Tests that need something which this kernel lacks are skipped; see needs.py.

Tests of a module that borrows the kernel's settings are marked `alone`, and so are those that look
at every death on the machine: they come one after the other, and the others run beside them
(tests/__main__.py). None of the others floods BPF's rings with deaths; one that wants a core of the
kernel's own waits for its turn with the settings.

A module whose agents take no hand-offs is marked `beside`, and `alone` those of its tests that have
cores dumped: a hand-off test takes the machine's next crash for its own.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system import agents, guardian, hold_support, settings, two_cores
from tests.system.needs import MARK, missing

BORROWERS = {module.__name__ for module in (agents, hold_support, settings, two_cores)}


def pytest_sessionstart() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # victims inherit what nohup(1) has set
    guardian.start()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{MARK}(feature): of the kernel; see tests/system/needs.py")
    config.addinivalue_line("markers", "beside: at the same time as those that are marked alone")
    config.addinivalue_line("markers", "alone: not at the same time as others that are so marked")


@pytest.hookimpl(tryfirst=True)  # before `-m` looks
def pytest_itemcollected(item: pytest.Item) -> None:
    assert isinstance(item, pytest.Function)
    names = vars(item.module).values()
    borrows = bool(BORROWERS & {getattr(name, "__module__", None) for name in names})
    if borrows and item.get_closest_marker("beside") is None:
        item.add_marker("alone")


@pytest.hookimpl(trylast=True)  # only what `-m` has left: to try a feature may take its time
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark in item.iter_markers(MARK):
            if (why := missing(mark.args[0])) is not None:
                item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """Where a victim mounts a file system (FUSE) of its own."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    yield folder
    subprocess.run(["umount", "-f", "-l", str(folder)], check=True)  # its server ends
