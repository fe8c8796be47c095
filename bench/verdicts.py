"""What is demanded of Coreward, told from the samples of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.model import MIB, Case, Figure, LiveCase, Result, Snapshot, Spread, spread
from bench.peers import KernelCore, NoDump
from bench.takers import AUTO, NONE, NONSTOP

WAIT_TARGET_MS = 5.0  # median, 64 MiB to 8 GiB
BELOW_FROM = 256 * MIB  # from here on faster than dying with no dump
COUNT_TARGET = 1.2  # times no dump, for many threads or mappings
ROOM_TARGET_MS = 3.0  # in a limited memory cgroup that has room for a successor
COPY_TARGET_MS = 600.0  # for each GiB, where it has none
COPY_SHARE_TARGET = 0.3  # of the time that the kernel takes for its core file
OURS = ("coreward, socket", "coreward, pipe")

WRITER_TARGET_MS = 10.0  # longest stop by a pre-copy: 6 GiB, 16 threads, a moderate writer
IDLE_TARGET_MS = 5.0  # 2 GiB, idle
NONSTOP_TARGET_MS = 0.2
_STOPS = {"snap-6GiB-16-writer": WRITER_TARGET_MS, "snap-2GiB-16-idle": IDLE_TARGET_MS}


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
                kernel = wait_of(result, KernelCore.name, case.name)
                figures += _judge(case, peer, ours, none, kernel)
    return figures


def _judge(
    case: Case, peer: str, ours: Spread, none: Spread, kernel: Spread | None
) -> list[Figure]:
    name = f"{case.name}, {peer.removeprefix('coreward, ')}: signal to wait"
    ratio = ours.median / none.median
    if case.memory_limit is not None:
        return _judge_limited(case, name, ours, kernel)
    if not case.is_size:
        return [Figure(name=name, value=ratio, unit="x no dump", target=COUNT_TARGET)]
    figures = [Figure(name=name, value=ours.median, unit="ms", target=WAIT_TARGET_MS)]
    if case.resident >= BELOW_FROM:
        figures.append(Figure(name=name, value=ratio, unit="x no dump", target=1.0, below=True))
    return figures


def _judge_limited(case: Case, name: str, ours: Spread, kernel: Spread | None) -> list[Figure]:
    """In a memory cgroup with a limit: at once if a successor fits, else when it is copied."""
    assert case.memory_limit is not None
    if 2 * case.resident <= case.memory_limit:
        return [Figure(name=name, value=ours.median, unit="ms", target=ROOM_TARGET_MS)]
    target = COPY_TARGET_MS * case.resident / (1024 * MIB)
    figures = [Figure(name=name, value=ours.median, unit="ms", target=target)]
    if kernel is not None:
        share = ours.median / kernel.median
        figures.append(
            Figure(name=name, value=share, unit="x the kernel's file", target=COPY_SHARE_TARGET)
        )
    return figures


def snapshots_of(result: Result, peer: str, case: LiveCase) -> list[Snapshot]:
    """All of one peer in one case."""
    return [s for s in result.snapshots if (s.peer, s.case) == (peer, case.name)]


def judge_snapshots(result: Result) -> list[Figure]:
    """One figure for each demand on a mode; as measured by the target, unless it says otherwise."""
    return [*_pre_copies(result), *_nonstops(result)]


def _pre_copies(result: Result) -> Iterator[Figure]:
    for case in result.live_cases:
        ours = snapshots_of(result, AUTO.name, case)
        if ours and case.name in _STOPS:
            yield _stop(result, case, ours, _STOPS[case.name])


def _nonstops(result: Result) -> Iterator[Figure]:
    for case in result.live_cases:
        ours = snapshots_of(result, NONSTOP.name, case)
        if ours:
            yield _stop(result, case, ours, NONSTOP_TARGET_MS)


def _stop(result: Result, case: LiveCase, ours: Sequence[Snapshot], target_ms: float) -> Figure:
    stops, stalls = spread(s.stop_ms for s in ours), spread(s.stall_ms for s in ours)
    assert stops is not None
    assert stalls is not None
    held = spread(s.held_ms for s in ours)
    noise = spread(s.stall_ms for s in snapshots_of(result, NONE.name, case))
    said = [", ".join(sorted({s.method for s in ours}))]
    said.append(f"{stops.low:.2f}-{stops.high:.2f} in {stops.count} rounds")
    if held:
        said.append(f"by its own account {held.median:.2f} ms")
    said.append(f"any stall {stalls.median:.2f} ms")
    if noise:
        said.append(f"with no snapshot {noise.median:.2f} ms")
    return Figure(
        name=f"{case.name}, {ours[0].peer.removeprefix('coreward, ')}: longest stop",
        value=stops.median,
        unit="ms",
        target=target_ms,
        detail="; ".join(said),
    )
