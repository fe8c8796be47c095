"""What is written although no descriptor is left."""

from __future__ import annotations

import contextlib
import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.linux.descriptors import Spare, use_all
from collector.store.store import Store
from tests.unit.store_samples import numbered


@contextlib.contextmanager
def none_left() -> Iterator[list[int]]:
    """All descriptors of this process are taken; those that stand for others' are told."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        yield taken
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def open_three() -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(open("/dev/null"))


def test_the_spare_ones_are_used_and_had_back() -> None:
    spare = Spare(3)
    with none_left():
        for _ in range(3):
            with pytest.raises(OSError, match="Too many open files"):
                open_three()
            spare.attempt(open_three, 0)
    spare.close()


def test_without_enough_of_them_it_waits_for_others() -> None:
    spare = Spare(1)
    with none_left() as taken:
        with pytest.raises(OSError, match="Too many open files"):
            spare.attempt(open_three, 0.05)
        # WHEN others give theirs back meanwhile
        failed = threading.Event()

        def attempt() -> None:
            failed.set()
            open_three()

        def give_back() -> None:
            failed.wait()
            for _ in range(2):
                os.close(taken.pop())

        other = threading.Thread(target=give_back)
        # its thread needs none
        other.start()
        spare.attempt(attempt, 60)
        other.join()
    spare.close()


def test_other_errors_are_not_tried_again() -> None:
    spare = Spare(1)
    with pytest.raises(FileNotFoundError):
        spare.attempt(lambda: os.stat("/nowhere"), 60)  # noqa: PTH116
    spare.close()


def test_records_are_stored_without_descriptors(tmp_path: Path) -> None:
    # GIVEN a store, and nothing left to open it with
    records = [numbered(n) for n in range(20)]
    with Store(tmp_path / "store", create=True) as store:
        with none_left():
            for record in records:
                store.put(record)
            with pytest.raises(OSError, match="Too many open files"):
                store.ids()
        # THEN all are there
        assert sorted(store.ids()) == sorted(record.id for record in records)
        assert store.get(records[0].id) == records[0]


def test_the_hard_limit_is_used() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
        assert use_all() == before[1]
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == before[1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
