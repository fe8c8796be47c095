"""An hour of mixed load: does the agent grow, and is anything lost that nobody explains?

Some hundred times meanwhile its memory, descriptors, threads and counts are looked at. All of it
goes to a file of comma-separated values; a table has some lines of it. Now and then the load pauses
until the agent has done all its work: what it has then is what is compared.
"""

from __future__ import annotations

import contextlib
import csv
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.load import Load
from bench.model import Figure, Say, Table
from bench.peers import scratch
from bench.processes import memory_kib, with_descendants
from bench.programs import BUILD
from bench.trend import growth
from tests.system.agents import RunningAgent, agent, deaths_of, scrape
from tests.system.scratch import tmpfs

MINUTES = 60.0
_FEWEST = 2  # looks at rest for a slope
JUDGED_MINUTES = 10.0  # below, what is warming up looks like growth
MEMORY_TARGET, COUNT_TARGET = 2.0, 2.0  # MiB, and descriptors or threads, over the second half
DISK = "256m"
_LOOKS, _LEAST_S = 360, 1.0  # looks at the agent, and seconds between two of them
_RESTS, _REST_EACH_S = 30, 20.0  # pauses of the load, and seconds between two of them at least
_QUIET_S = 6.0  # without any work; idle connections are closed by then
_LINES = 20  # of the table
_PATIENCE_S = 120.0
_CONFIG = """\
store: {min_free: 16MiB}
defaults: {limit: {captures: 5, period: 1m}}
watch: [{name: target, match: {comm: live_target}, every: 1s, keep: 30}]
"""
_RECORDER = 1  # process beside the agent, for the `watch` rule
Look = dict[str, float]
_LINE = re.compile(r"\S+ [0-9a-f]{16} pid (\d+) ")

_GAUGES = {
    "pins": "coreward_pins_open",
    "queued": "coreward_captures_queued",
    "hanging": "coreward_hanging_processes",
    "left behind": "coreward_handoff_threads_left_behind",
    "lent": "coreward_lent_bytes",
}
# what is counted when something could not be had; in the file by the names of the metrics
_LOSSES = (
    "coreward_probe_events_dropped_total",
    "coreward_deaths_beyond_share_total",
    "coreward_errors_total",
    "coreward_captures_queue_full_total",
    "coreward_handoffs_refused_total",
    "coreward_watch_refused_total",
    "coreward_captures_limited_total",
)
# of these what no record explains: all others are named in the record of the death, or said
# (coreward_errors_total{stage="store"}) when the disk is full
_UNEXPLAINED = re.compile(
    r'coreward_(?:probe_events_dropped_total\{program="(?!mappings)'
    r'|deaths_beyond_share_total\{kept="no"'
    r'|errors_total\{stage="(?:record|spool|stop)"'
    r'|handoffs_refused_total\{why="memory")'
)


def measure(minutes: float, say: Say) -> tuple[list[Figure], Table]:
    """Run it, with the default hand-off. The figures, and the lines of the table."""
    say(f"mixed load for {minutes:g} minutes")
    with scratch() as folder, contextlib.ExitStack() as stack:
        folder.chmod(0o755)
        (folder / "store").mkdir(mode=0o700)
        stack.enter_context(tmpfs(folder / "store", DISK))
        running = stack.enter_context(agent(folder, config=_CONFIG, metrics=True, patience="250ms"))
        looks: list[Look] = []
        with Load(running, folder) as load:
            try:
                _watch(running, load, looks, minutes * 60)
            finally:
                file = _write(looks)
        say(f"at rest; all looks are in {file}")
        return [
            *grown(looks, judged=minutes >= JUDGED_MINUTES),
            *_lost(running, load),
            *_rested(running),
        ], table(looks)


def _watch(running: RunningAgent, load: Load, looks: list[Look], seconds: float) -> None:
    """Look at the agent over and over, at work and at rest; `looks` grows."""
    pause = max(_LEAST_S, seconds / _LOOKS)
    each = max(_REST_EACH_S, seconds / _RESTS)
    begun = rested = time.monotonic()
    while (now := time.monotonic()) - begun < seconds:
        is_rest = now - rested >= each
        with load.paused() if is_rest else contextlib.nullcontext():
            if is_rest:
                _wait_rested(running)
                rested = time.monotonic()
            passed = round(time.monotonic() - begun, 1)
            looks.append({"seconds": passed, "rested": float(is_rest), **_look(running)})
        time.sleep(pause)  # the passing of time is what is measured


def _wait_rested(running: RunningAgent) -> None:
    """Until it has had nothing to do for some seconds; or for a minute or two."""
    deadline = time.monotonic() + _PATIENCE_S
    quiet = time.monotonic()
    while time.monotonic() < min(deadline, quiet + _QUIET_S):
        is_alone = len(with_descendants(running.process.pid)) <= 1 + _RECORDER
        if _kept(running) or not is_alone:
            quiet = time.monotonic()
        time.sleep(0.5)


def _look(running: RunningAgent) -> Look:
    pid = running.process.pid
    children = [child for child in with_descendants(pid) if child != pid]
    samples = scrape(running.port)
    kept = {name: value for name, value in samples.items() if name.startswith(_LOSSES)}
    return {
        "rss MiB": round(memory_kib(pid, "VmRSS") / 1024, 2),
        "anonymous MiB": round(memory_kib(pid, "RssAnon") / 1024, 2),
        "pss MiB": round(_pss_kib(pid) / 1024, 2),
        "children": len(children),
        "their pss MiB": round(sum(map(_pss_kib, children)) / 1024, 2),
        "descriptors": len(list(Path(f"/proc/{pid}/fd").iterdir())),
        "threads": len(list(Path(f"/proc/{pid}/task").iterdir())),
        **{name: samples[metric] for name, metric in _GAUGES.items()},
        "deaths": sum(deaths_of(samples).values()),
        **kept,
    }


def _pss_kib(pid: int) -> int:
    """0 if it has just ended."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    found = re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)
    return int(found[1]) if found else 0


def _write(looks: Sequence[Look]) -> Path:
    """All of it, as a file; a loss that was not counted yet is 0."""
    file = BUILD / "soak.csv"
    with file.open("w", newline="") as out:
        names = list(dict.fromkeys(name for look in looks for name in look))
        writer = csv.DictWriter(out, names, restval=0)
        writer.writeheader()
        writer.writerows(looks)
    return file


def table(looks: Sequence[Look]) -> Table:
    """Some of them, without what single losses there were."""
    header = [name for name in looks[0] if not name.startswith("coreward_")]
    some = looks[:: -(-len(looks) // _LINES)]
    return Table(
        title="Mixed load",
        header=header,
        rows=[[f"{look[name]:.10g}" for name in header] for look in some],
    )


def grown(looks: Sequence[Look], *, judged: bool) -> list[Figure]:
    """By how much over the second half, at rest."""
    end = looks[-1]["seconds"]
    second = [look for look in looks if look["rested"] and look["seconds"] >= end / 2]
    times = [look["seconds"] for look in second]
    if len(times) < _FEWEST:
        return []
    hours = (times[-1] - times[0]) / 3600
    figures = []
    for name, unit, target in (
        # pages of files come and go with what else the host does
        ("anonymous MiB", "MiB", MEMORY_TARGET),
        ("descriptors", "", COUNT_TARGET),
        ("threads", "", COUNT_TARGET),
    ):
        values = [look[name] for look in second]
        grown = growth(times, values)
        figures.append(
            Figure(
                name=f"soak, {name.removesuffix(' MiB')}: growth over the second half",
                value=grown,
                unit=unit,
                target=target if judged else None,
                detail=f"{grown / hours:.2f} an hour; median {statistics.median(values):.1f}, "
                f"most {max(values):.1f} at rest, {max(look[name] for look in looks):.1f} at work"
                + ("" if judged else "; too short to be judged"),
            )
        )
    return figures


def _lost(running: RunningAgent, load: Load) -> list[Figure]:
    """Whether every death that the load knows is told or counted, and what else was lost."""
    deadline = time.monotonic() + _PATIENCE_S
    while (untold := set(load.deaths) - _told(running)) and time.monotonic() < deadline:
        time.sleep(1)
    known = len(load.deaths) + load.stormed
    samples = scrape(running.port)
    while (total := sum(deaths_of(samples).values())) < known and time.monotonic() < deadline:
        time.sleep(1)
        samples = scrape(running.port)
    losses = {n: v for n, v in samples.items() if n.startswith(_LOSSES) and v}
    silent = {name: value for name, value in losses.items() if is_unexplained(name)}
    named = {name: value for name, value in losses.items() if name not in silent}
    rounds = ", ".join(f"{name} {count}" for name, count in sorted(load.done.items()))
    return [
        Figure(name="soak: deaths", value=known, unit="", detail=rounds),
        _none("soak: what did not end", len(load.stuck), "; ".join(load.stuck[:3])),
        _none("soak: deaths without a line", len(untold), ", ".join(map(str, sorted(untold)[:5]))),
        _none("soak: deaths not counted", max(0, known - total), f"{total:,.0f} are"),
        _none("soak: losses that nothing explains", sum(silent.values()), _listed(silent)),
        Figure(
            name="soak: what is missing and said so",
            value=sum(named.values()),
            unit="",
            detail=_listed(named),
        ),
        Figure(
            name="soak: commands refused",
            value=load.failed.total(),
            unit="",
            detail=_listed(dict(load.failed)),
        ),
    ]


def is_unexplained(metric: str) -> bool:
    """Whether a loss that it counts is said nowhere else."""
    return _UNEXPLAINED.match(metric) is not None


def _told(running: RunningAgent) -> set[int]:
    """The pids of all lines."""
    return {int(line[1]) for line in map(_LINE.match, list(running.lines)) if line}


def _listed(counts: Mapping[str, float]) -> str:
    return "; ".join(f"{name.removeprefix('coreward_')} {n:g}" for name, n in counts.items())


def _rested(running: RunningAgent) -> list[Figure]:
    """What the agent still has of the dead when nothing dies any more."""
    deadline = time.monotonic() + _PATIENCE_S
    while any((kept := _kept(running)).values()) and time.monotonic() < deadline:
        time.sleep(1)
    return [_none("soak: kept at the end", sum(kept.values()), _listed(kept))]


def _kept(running: RunningAgent) -> Look:
    samples = scrape(running.port)
    return {name: samples[metric] for name, metric in _GAUGES.items() if samples[metric]}


def _none(name: str, found: float, detail: str) -> Figure:
    return Figure(name=name, value=found, unit="", target=0, detail=detail)
