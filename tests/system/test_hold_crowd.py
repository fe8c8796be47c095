"""The native part in a crowd: who would only wait behind his like goes without his memory."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

import pytest

from collector.handoff.backends import OpenBackend
from collector.handoff.native import Native, Taken
from collector.linux.memory import LevelKey
from collector.model import Backend
from collector.native.contract import HANDFUL, OWNER_DEVICE
from collector.probe.probe import Probe
from tests.system.hold_support import Place, Victim, place, take
from tests.system.needs import by_socket
from tests.system.probe_support import opened
from tests.system.victims import PATIENCE

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

EITHER = (by_socket(Backend.SOCKET), Backend.PIPE)
CROWDED, OTHER = 65534, 65533  # uids
ROOM = 1 << 40  # bytes
HOUR = 3600.0


@pytest.fixture(scope="module")
def probe() -> Iterator[Probe]:
    with opened("core", "crowd") as one:
        yield one


@pytest.fixture
def here() -> Iterator[Place]:
    with place() as where:
        yield where


@pytest.fixture
def native(probe: Probe) -> Native:
    """It may release at once; a handful of pins is an owner's share."""
    one = Native()
    one.use_bpf(*probe.iterators)
    one.allow(instant=True, max_pins=2 * HANDFUL, max_pinned=ROOM, patience_s=PATIENCE)
    return one


@contextlib.contextmanager
def death_of(backend: OpenBackend, here: Place, user: int) -> Iterator[Taken]:
    """A process of that user that has crashed, and is gone."""
    with Victim(here, user=user) as victim:
        victim.crash()
        assert victim.is_gone(PATIENCE)
        assert victim.process.wait() == -signal.SIGSEGV
        with contextlib.closing(take(backend)) as taken:
            assert taken.handoff.pid == victim.pid
            yield taken


@pytest.mark.parametrize("kind", EITHER)
def test_only_those_whose_owner_has_his_share_are_spared(
    here: Place, native: Native, kind: Backend
) -> None:
    # GIVEN a user whose share of pins is used up, and cores that take an hour each
    native.count(HANDFUL, 0, {LevelKey(OWNER_DEVICE, CROWDED): HANDFUL})
    with here.backend(kind, native) as backend:
        native.expect(HOUR)
        # WHEN one more of his processes dies
        with death_of(backend, here, CROWDED) as taken:
            # THEN it went at once, with what is needed for a record of it, and no more
            assert taken.spared and taken.pin is None and not taken.why
            assert taken.texts["cmdline"].split(b"\0")[0] == os.fsencode(here.victim)
            assert taken.texts["status"] and not taken.threads and not taken.mappings
            # AND it is known until somebody has seen to it, and in no account of pins
            key = taken.key
            assert key is not None and native.has_in_hand(key)
            assert native.fresh() == (0, 0, {})
        assert not native.has_in_hand(key)
        # WHEN somebody else's process dies THEN its memory is kept
        with death_of(backend, here, OTHER) as taken:
            assert not taken.spared and taken.pin is not None


@pytest.mark.parametrize("kind", EITHER)
@pytest.mark.parametrize(
    ("pins", "each_s"), [(HANDFUL - 1, HOUR), (HANDFUL, 0.0)], ids=["a share", "in time"]
)
def test_nobody_is_spared_without_need(
    here: Place, native: Native, kind: Backend, pins: int, each_s: float
) -> None:
    native.count(pins, 0, {LevelKey(OWNER_DEVICE, CROWDED): pins})
    with here.backend(kind, native) as backend:
        native.expect(each_s)
        if pins < HANDFUL:
            with death_of(backend, here, CROWDED) as taken:
                assert not taken.spared and taken.pin is not None
        else:  # it waits for a copy
            with Victim(here, user=CROWDED) as victim:
                victim.crash()
                with contextlib.closing(take(backend)) as taken:
                    assert not taken.spared and taken.pin is None
                    assert not victim.is_gone()
