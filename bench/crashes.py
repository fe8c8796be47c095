"""The main comparison: every case under every peer, taking turns round by round."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager

import msgspec

from bench.coreward import Coreward, warm_up
from bench.launch import Loaded, loaded
from bench.model import Case, Result, Sample, Say
from bench.peers import KernelCore, NoDump, Peer, Session, Unavailable
from bench.relayed import Minicoredumper, SystemdCoredump
from bench.settle import available_memory, settle
from tests.system.memory_cgroups import has_memory_controller, memory_cgroup

PEERS: tuple[Peer, ...] = (
    NoDump(),
    KernelCore(),
    SystemdCoredump(),
    Minicoredumper(),
    Coreward("pipe"),
    Coreward("socket"),
)
_SPARE = 2 << 30  # bytes of memory that no case may take
_WARM = 1 << 30  # bytes of free memory that are in use before each death: more takes too long


def compare(
    cases: Sequence[Case],
    peers: Sequence[Peer],
    rounds: int | None,
    result: Result,
    say: Say,
) -> None:
    """Run all rounds; samples, absent peers and notes go to `result`.

    rounds: at most this many of each case. A slow peer has fewer rounds of large cases.
    """
    fitting = [case for case in cases if _fits(case, result)]
    if rounds is not None:
        fitting = [
            msgspec.structs.replace(case, rounds=min(case.rounds, rounds)) for case in fitting
        ]
    result.cases = fitting
    for turn in range(max((case.rounds for case in fitting), default=0)):
        # the order rotates: nobody is always after the same one
        for index in range(len(peers)):
            peer = peers[(index + turn) % len(peers)]
            todo = [case for case in fitting if turn < peer.rounds(case)]
            if not todo or peer.name in result.absent:
                continue
            say(f"round {turn + 1}: {peer.name}: {', '.join(case.name for case in todo)}")
            try:
                result.samples += _session(peer, todo, turn)
            except Unavailable as error:
                result.absent[peer.name] = str(error)


def _fits(case: Case, result: Result) -> bool:
    if case.memory_limit is not None and not has_memory_controller():
        result.notes.append(f"{case.name}: left out, cgroups have no memory controller here")
        return False
    available = available_memory()
    # the dead process, and a successor of the same size: else the agent would have to hold it
    if 2 * case.resident + _SPARE <= available:
        return True
    result.notes.append(
        f"{case.name}: left out, {available >> 30} GiB of memory are too little for it"
    )
    return False


def _victim(session: Session, case: Case) -> AbstractContextManager[Loaded]:
    return loaded(case, core_limit=session.core_limit, folder=session.folder)


def _session(peer: Peer, cases: Sequence[Case], turn: int) -> list[Sample]:
    with peer.session() as session:
        warm_up(session)
        return [msgspec.structs.replace(one_death(session, case), round=turn + 1) for case in cases]


def one_death(session: Session, case: Case) -> Sample:
    """One victim, from its start to the removal of what was made of it."""
    with contextlib.ExitStack() as stack:
        if case.memory_limit is not None:
            group = stack.enter_context(memory_cgroup(case.memory_limit))
            with group.entered():
                victim = stack.enter_context(_victim(session, case))
        else:
            victim = stack.enter_context(_victim(session, case))
        settle(min(case.resident, _WARM))
        session.before(case)
        return session.after(case, victim.fire())
