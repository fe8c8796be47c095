"""Scenarios of live processes: every way to take a snapshot, and `sample`.

The victim has threads that stay where their names say, one that keeps known values in its
registers, and memory with known contents. It counts whatever disturbs it.
"""

from __future__ import annotations

import json
import re
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from collector.elfcore.reader import CoreFile
from tests.kernels.features import Here
from tests.kernels.run import Finding, Scenarios, cannot, judged
from tests.kernels.verbs import Done, live_loader, verb
from tests.system.live_targets import Target, live_target
from tests.system.snapshots import backtraces, executable_of
from tests.system.victims import running, wait_until

THREADS = ("futex:3", "nanosleep:2", "epoll:1", "spin:1")
STACKS = {"main": 1, "block_in_futex": 3, "block_in_nanosleep": 2, "block_in_epoll": 1, "spin": 1}
SMALL_MIB, LARGE_MIB = 4, 200  # a fork suits the one, a pre-copy the other
_PAGE = 4096
_STEP = 64  # bytes from one word that is written to the next
_MASK = (1 << 64) - 1


class Place(NamedTuple):
    """Where a scenario works: `folder` is its own."""

    here: Here
    folder: Path


scenarios: Scenarios[Place] = Scenarios()


class Way(NamedTuple):
    """A way to take a snapshot, and what it has to say of itself."""

    feature: str
    words: tuple[str, ...]
    mode: str
    methods: tuple[str, ...]
    full: bool = True  # whether all memory is in the core
    mib: int = SMALL_MIB


WAYS = (
    Way("threads", ("--mode", "threads"), "threads", ("iterator",), full=False),
    Way("rolling", ("--mode", "threads", "--fpu"), "threads", ("rolling",), full=False),
    Way("nonstop", ("--mode", "nonstop"), "nonstop", ("rolling",)),
    Way("fork", ("--mode", "full-stop"), "full-stop", ("fork",)),
    Way("pre-copy", ("--mode", "full-stop"), "full-stop", ("pre-copy",), mib=LARGE_MIB),
    Way("copy", ("--mode", "full-stop", "--no-inject"), "full-stop", ("copy",)),
    Way("auto", (), "full-stop", ("fork", "pre-copy")),
)


def _add(way: Way) -> None:
    @scenarios.tells(way.feature)
    def snapshot(place: Place) -> Iterator[Finding]:
        yield _snapshot(place, way)


for _way in WAYS:
    _add(_way)


def _snapshot(place: Place, way: Way) -> Finding:
    core = place.folder / f"{way.feature}.core"
    with live_target(place.folder, f"memory:{way.mib}", *THREADS) as target:
        before = target.state()
        with live_loader(place.here.loader):
            done = verb("snapshot", target.pid, *way.words, "-o", core, "--json")
        if done.status != 0:
            return cannot(way.feature, done.why)
        facts = json.loads(done.out)
        wrong = list(_core_differences(core, target, way))
        wrong += _disturbed(target, before)
    core.unlink()
    if facts["mode"] == way.mode and facts["method"] not in way.methods and not wrong:
        return cannot(way.feature, f"by {facts['method']}: {facts['why']}")
    if (facts["mode"], facts["method"]) not in [(way.mode, method) for method in way.methods]:
        wrong.append(f"{facts['mode']} by {facts['method']}: {facts['why']}")
    if done.err.startswith("coreward: without BPF") != (place.here.loader == "none"):
        wrong.append(done.err.strip())
    return judged(way.feature, wrong)


def _disturbed(target: Target, before: Any) -> Iterator[str]:
    """What the victim has noticed."""
    changed = target.changed(before)
    if changed:
        yield f"the process has noticed it: {changed}"
    if not target.goes_on():
        yield "the process does not go on"


def _core_differences(core: Path, target: Target, way: Way) -> Iterator[str]:
    """Threads by gdb, registers of the one that spins, and memory."""
    shown = backtraces(core, executable_of(target.pid))
    names = "|".join((*STACKS, "guard"))
    found: Counter[str] = Counter()
    for text in shown.values():
        own = re.findall(rf"(?m)^#\d+ .*\b({names}) \(", text)
        found[own[0] if own and own[0] != "guard" else "spin"] += bool(own)
    if found != STACKS:
        yield f"gdb shows {dict(found)} of {len(shown)} threads"
    with CoreFile(core) as opened:
        if {thread.tid for thread in opened.threads} != set(shown):
            yield "gdb shows other threads than there are"
        if way.full:
            yield from _memory_differences(opened, target)


def _memory_differences(core: CoreFile, target: Target) -> Iterator[str]:
    """fill() of live_target.c writes the same words each time; spot checks of the larger one."""
    report, state = target.report, 88172645463325252
    for at in range(0, min(report.size, SMALL_MIB << 20), _STEP):
        state ^= state << 13 & _MASK
        state ^= state >> 7
        state ^= state << 17 & _MASK
        if at % _PAGE == 0:
            page = core.read(report.memory + at, _PAGE)
        if struct.unpack_from("<Q", page, at % _PAGE)[0] != state:
            yield f"memory is different at {report.memory + at:#x}"
            return


@scenarios.tells("gcore")
def gcore(place: Place) -> Iterator[Finding]:
    way = Way("gcore", (), "full-stop", ("fork",))
    with live_target(place.folder, f"memory:{SMALL_MIB}", *THREADS) as target:
        before = target.state()
        with live_loader(place.here.loader):
            done = verb("gcore", "-o", place.folder / "g", target.pid)
        core = place.folder / f"g.{target.pid}"
        if done.status != 0:
            yield cannot("gcore", done.why)
            return
        wrong = list(_core_differences(core, target, way)) + list(_disturbed(target, before))
    if f"Saved corefile {core}" not in done.out:
        wrong.append(f"it said {done.out!r}")
    yield judged("gcore", wrong)


@scenarios.tells("sample")
def sample(place: Place) -> Iterator[Finding]:
    """Each thread is in its place, by its own functions."""
    wanted = {
        "sample_places": ("read", ["main"]),
        "lock-1": ("futex", ["wait_for_lock", "enter"]),
        "lock-2": ("futex", ["wait_for_lock", "enter"]),
        "nap": ("clock_nanosleep", ["nap", "enter"]),
        "poll": ("poll", ["wait_for_input", "enter"]),
        "spin": (None, ["spin_inside", "spin", "enter"]),
    }
    with running("sample_places", cwd=place.folder) as victim:
        asleep = set("S")
        tasks = Path(f"/proc/{victim.pid}/task")
        wait_until(lambda: _sleeping(tasks, asleep) == len(wanted) - 1, "threads do not settle")
        with live_loader(place.here.loader):
            done = verb("sample", victim.pid, "--every", "200ms", "--for", "2s", "--json")
    if done.status != 0:
        yield cannot("sample", done.why)
        return
    yield judged("sample", _places_differences(done, wanted))


def _sleeping(tasks: Path, states: set[str]) -> int:
    stats = [(task / "stat").read_text().rpartition(")")[2].split() for task in tasks.iterdir()]
    return sum(words[0] in states for words in stats)


def _places_differences(done: Done, wanted: dict[str, tuple[str | None, list[str]]]) -> list[str]:
    (report,) = json.loads(done.out)["processes"]
    found = {}
    for place in report["places"]:
        frames = [report["frames"][number] for number in place["frames"]]
        own = [f["function"] for f in frames if (f["file"] or "").endswith("sample_places.c")]
        for thread in place["threads"]:
            found[thread["name"]] = place["waits_in"], own
    wrong = [
        f"{name}: {found.get(name)}, not {place}"
        for name, place in wanted.items()
        if found.get(name) != place
    ]
    return wrong + ([f"lost {report['lost']}"] if report["lost"] else [])
