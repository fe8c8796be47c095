"""Tests that need something which this kernel lacks are skipped; see needs.py.

They run one after the other: many borrow the kernel's settings, and an agent sees every death on
the machine, so a test that floods it would be in the way of one that looks at what it keeps.
"""

from __future__ import annotations

import pytest

from tests.system import guardian
from tests.system.needs import MARK, missing


def pytest_sessionstart() -> None:
    guardian.start()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{MARK}(feature): of the kernel; see tests/system/needs.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark in item.iter_markers(MARK):
            if (why := missing(mark.args[0])) is not None:
                item.add_marker(pytest.mark.skip(reason=why))
