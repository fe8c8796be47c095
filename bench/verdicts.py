"""What is demanded of Coresnap, told from the samples of a run."""

from __future__ import annotations

from bench.model import MIB, Case, Figure, Result, Spread, spread
from bench.peers import NoDump

WAIT_TARGET_MS = 5.0  # median, 64 MiB to 8 GiB
BELOW_FROM = 256 * MIB  # from here on faster than dying with no dump
COUNT_TARGET = 1.2  # times no dump, for many threads or mappings
OURS = ("coresnap, socket", "coresnap, pipe")


def wait_of(result: Result, peer: str, case: str) -> Spread | None:
    """Signal to wait of one peer in one case, in milliseconds."""
    return spread(s.wait_ms for s in result.samples if (s.peer, s.case) == (peer, case))


def judge(result: Result) -> list[Figure]:
    """One figure for each demand on each hand-off."""
    figures = []
    for case in result.cases:
        for peer in OURS:
            ours, none = (wait_of(result, name, case.name) for name in (peer, NoDump.name))
            if ours is not None and none is not None:
                figures += _judge(case, peer, ours, none)
    return figures


def _judge(case: Case, peer: str, ours: Spread, none: Spread) -> list[Figure]:
    name = f"{case.name}, {peer.removeprefix('coresnap, ')}: signal to wait"
    ratio = ours.median / none.median
    if not case.is_size:
        return [Figure(name=name, value=ratio, unit="x no dump", target=COUNT_TARGET)]
    figures = [Figure(name=name, value=ours.median, unit="ms", target=WAIT_TARGET_MS)]
    if case.resident >= BELOW_FROM:
        figures.append(Figure(name=name, value=ratio, unit="x no dump", target=1.0, below=True))
    return figures
