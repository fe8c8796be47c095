"""Scenarios of the agent: what dies under its eyes, and what it makes of that."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from collector.elfcore.reader import CoreFile
from collector.handoff.coredump_socket import SocketBackend
from collector.handoff.pipe import PipeBackend
from collector.native.build import NAME, find
from collector.probe.probe import open_probe
from tests.kernels.deaths import (
    CONFIG,
    ZOO,
    Died,
    Facts,
    backtrace_differences,
    die,
    die_in_a_loop,
    differences,
)
from tests.kernels.features import Here
from tests.kernels.run import Cannot, Finding, Scenarios, cannot, judged
from tests.kernels.verbs import verb
from tests.system.agents import NotReady, RunningAgent, agent
from tests.system.snapshots import gdb
from tests.system.two_cores import differences as memory_differences
from tests.system.two_cores import plain_thread, two_cores
from tests.system.victims import PATIENCE, build, running

BEFORE = "core-before"  # core_pattern before the agent starts
LOOP = 200
RESIDENT_MIB = 64
PAGE = 4096
OF_THE_ZOO = ("exit-exe", "backtraces", "kill-backtrace", "cores")  # features of its records
SAMPLES = 10  # of the watched process: those that the agent keeps


class Watching:
    """An agent that is ready, and all that this process let die under it."""

    def __init__(
        self, here: Here, folder: Path, running_agent: RunningAgent, wanted: Sequence[str]
    ) -> None:
        self.here = here
        self.wanted = wanted  # of the zoo
        self.folder = folder
        self.agent = running_agent
        self.died: list[int] = []
        self.zoo: dict[str, tuple[Died, Facts]] = {}

    @property
    def holds(self) -> bool:
        return self.here.handoff != "none"

    def let_die(self, name: str) -> Died:
        died = die(ZOO[name], self.folder)
        self.died.append(died.pid)
        return died

    def death(self, name: str) -> tuple[Died, Facts]:
        """A death and its record."""
        died = self.let_die(name)
        return died, self.record(died.pid)

    def record(self, pid: int) -> Facts:
        """What `info` says of a death, once it is finished."""
        found: Facts = self.verb_json("info", self.agent.wait_record(pid), "--json")
        return found

    def verb_json(self, name: str, *words: object) -> Any:
        done = verb(name, "--store", self.agent.store, *words)
        assert done.status == 0, done.err
        return json.loads(done.out)

    def core(self, identity: str, name: str, *words: object) -> Path:
        """A core of a record as a plain file."""
        path = self.folder / name
        done = verb("core", "--store", self.agent.store, identity, *words, "-o", path)
        assert done.status == 0, done.err
        return path


scenarios: Scenarios[Watching] = Scenarios()


@contextlib.contextmanager
def watching(here: Here, folder: Path, wanted: Sequence[str] = tuple(ZOO)) -> Iterator[Watching]:
    """An agent under which these of the ten deaths are to happen. Raises Cannot, in its own words,
    if it does not get ready."""
    try:
        with agent(
            folder,
            config=CONFIG,
            backend=here.handoff,
            loader=here.loader,
            metrics=True,
            core_pattern=BEFORE,
            core_pipe_limit="0",
        ) as ready:
            yield Watching(here, folder, ready, wanted)
    except NotReady as error:
        said = [line for line in error.lines if line.startswith("coreward: ")]
        if not said:
            raise
        raise Cannot(said[-1].removeprefix("coreward: ")) from error


@scenarios.tells("ready")
def says_what_it_has(subject: Watching) -> Iterator[Finding]:
    said = next(line for line in subject.agent.lines if line.startswith("ready"))
    here, pattern = subject.here, subject.agent.settings.read("core_pattern")
    wanted = f"ready: {here.loader} BPF, {here.handoff} hand-off, "
    start = {"socket": "@@", "pipe": "|", "none": BEFORE}[here.handoff]
    wrong = [] if said.startswith(wanted) else [f"{said!r}, not {wanted!r}"]
    if not pattern.startswith(start):
        wrong.append(f"core_pattern is {pattern!r}")
    yield judged("ready", wrong)


@scenarios.tells(*ZOO)
def zoo(subject: Watching) -> Iterator[Finding]:
    """Ten deaths, one after the other."""
    for name in subject.wanted:
        died, record = subject.zoo[name] = subject.death(name)
        yield judged(name, differences(died, record, held=subject.holds))


@scenarios.tells("exit-exe")
def by_executable(subject: Watching) -> Iterator[Finding]:
    """Which of the two rules for it has matched."""
    _, record = subject.zoo["exit"]
    if record["rule"] == "exits-comm" and record["exe"] is None:
        yield cannot("exit-exe", record["lost"].get("exe"))
        return
    found = (record["rule"], record["exe"])
    wanted = ("exits-exe", str(build("exit_status")))
    yield judged("exit-exe", [] if found == wanted else [f"{found}, not {wanted}"])


@scenarios.tells("backtraces", "kill-backtrace")
def backtraces(subject: Watching) -> Iterator[Finding]:
    crashes = [seen for seen in subject.zoo.values() if seen[0].death.dumps_core]
    yield judged_backtraces("backtraces", crashes)
    yield judged_backtraces("kill-backtrace", [subject.zoo["killed"]])


def judged_backtraces(feature: str, deaths: list[tuple[Died, Facts]]) -> Finding:
    """All of them are right, or there is none and each record says why."""
    reasons = {record["lost"].get("frames") for _, record in deaths if not record["frames"]}
    if len(reasons) == 1 and not any(record["frames"] for _, record in deaths):
        return cannot(feature, reasons.pop())
    wrong = [
        f"{died.death.name}: {what}; lost: {record['lost']}"
        for died, record in deaths
        for what in backtrace_differences(died, record)
    ]
    return judged(feature, wrong)


@scenarios.tells("cores")
def cores(subject: Watching) -> Iterator[Finding]:
    """gdb takes the core of the process with 51 threads, and has a backtrace of each."""
    crashes = [record for died, record in subject.zoo.values() if died.death.dumps_core]
    if not subject.holds:
        reasons = {record["lost"].get("core") for record in crashes}
        yield cannot("cores", "; ".join(sorted(reason or "" for reason in reasons)))
        return
    _, record = subject.zoo["worker"]
    core = subject.core(record["id"], "threads.core")
    shown = gdb(core, build("threads"), "echo begin\\n", "thread apply all -q bt")
    shown = shown.partition("begin\n")[2]  # it greets with the innermost frame
    found = Counter(re.findall(r"^#\d+ .*\b(crash|sleeper|main) \(", shown, re.MULTILINE))
    wanted = {"crash": 1, "sleeper": 49, "main": 1}
    lost = [f"{r['comm']}: lost {r['lost']}" for r in crashes if set(r["lost"]) - {"outer_frames"}]
    yield judged("cores", lost + ([] if found == wanted else [f"gdb shows {dict(found)}"]))


@scenarios.tells("instant")
def instant_release(subject: Watching) -> Iterator[Finding]:
    """The process is gone before its memory is read, and all of that is in the core."""
    with running("resident", str(RESIDENT_MIB), "2", cwd=subject.folder) as victim:
        victim.go()
        victim.wait()
        subject.died.append(victim.pid)
    record = subject.record(victim.pid)
    if record["release"] is None:
        yield cannot("instant", record["lost"].get("core"))
        return
    found = (record["release"], record["release_reason"], record["outcome"], record["threads"])
    wrong = [] if found == ("instant", "room for a successor", "complete", 3) else [f"{found}"]
    if record["held_ms"] >= record["capture_s"] * 1000:
        wrong.append(f"held {record['held_ms']} ms of {record['capture_s']} s")
    wrong += _resident_differences(subject.core(record["id"], "resident.core"))
    yield judged("instant", wrong)


def _resident_differences(core: Path) -> list[str]:
    """The first words of the victim's pages say which page each is."""
    size = RESIDENT_MIB << 20
    with CoreFile(core) as opened:
        areas = [p.segment for p in opened.segments if p.segment.filesz >= size]
        if len(areas) != 1:
            return [f"{len(areas)} areas of {RESIDENT_MIB} MiB"]
        start, end = areas[0].vaddr, areas[0].vaddr + areas[0].filesz
        found = [int.from_bytes(opened.read(at, 8), "little") for at in range(start, end, PAGE)]
    wanted = [number | 1 for number in range(size // PAGE)]
    # the kernel may have joined a thread's stack to either end
    more = len(found) - len(wanted)
    if not any(found[at : at + len(wanted)] == wanted for at in range(more + 1)):
        return [f"not all of its pages are among {len(found)}"]
    return []


@scenarios.tells("loop")
def a_loop(subject: Watching) -> Iterator[Finding]:
    pids = die_in_a_loop(LOOP, subject.folder)
    subject.died += pids
    for pid in pids:
        subject.agent.wait_record(pid)
    listed = subject.verb_json("list", "--json")
    found = Counter(record["pid"] for record in listed)
    wrong = [f"pid {pid} is on record {found[pid]} times" for pid in pids if found[pid] != 1]
    for record in listed:
        facts = (record["cause"], record["signal_name"], record["comm"])
        if record["pid"] in set(pids) and facts != ("signal", "SIGSEGV", "hold_threads"):
            wrong.append(f"{record['pid']}: {facts}")
    yield judged("loop", wrong)


@scenarios.tells("recorder", "sample-core")
def flight_recorder(subject: Watching) -> Iterator[Finding]:
    counted = "coreward_watch_samples_total"
    with running("watched", cwd=subject.folder) as victim:
        wanted = subject.agent.metric(counted) + SAMPLES + 2
        deadline = time.monotonic() + PATIENCE
        while subject.agent.metric(counted) < wanted:
            assert time.monotonic() < deadline, "the process is not sampled"
            time.sleep(0.1)
        victim.go()
        victim.wait()
        subject.died.append(victim.pid)
    record = subject.record(victim.pid)
    if record["samples"] is None:
        yield cannot("recorder", record["lost"].get("samples"))
        yield cannot("sample-core", record["lost"].get("samples"))
        return
    yield judged("recorder", _history_differences(record))
    yield _sample_core(subject, record)


def _sample_core(subject: Watching, record: Facts) -> Finding:
    """A thread that ran at that moment may be missing; in one of the last samples none did."""
    wanted = (3, {"wait_for_lock", "tick", "main"})
    seen = []
    for number in range(1, SAMPLES // 2 + 1):
        core = subject.core(record["id"], f"sample{number}.core", "--sample", f"-{number}")
        shown = gdb(core, build("watched"), "thread apply all bt")
        names = set(re.findall(r"^#\d+ .*\b(wait_for_lock|tick|main) \(", shown, re.MULTILINE))
        seen.append((len(re.findall(r"^Thread \d", shown, re.MULTILINE)), names))
        if seen[-1] == wanted:
            return judged("sample-core", [])
    return judged("sample-core", [f"gdb shows these threads and functions: {seen}"])


def _history_differences(record: Facts) -> list[str]:
    history = record["history"]
    wrong = []
    if record["samples"]["count"] != SAMPLES:
        wrong.append(f"{record['samples']['count']} samples")
    places: dict[str, set[str]] = {}
    for place in history["places"]:
        names = {history["frames"][number]["function"] for number in place["frames"]}
        for thread in place["threads"]:
            places.setdefault(thread["name"], set()).update(names)
    for thread, function in {
        "watched": "main",
        "waiter": "wait_for_lock",
        "ticker": "tick",
    }.items():
        if function not in places.get(thread, set()):
            wrong.append(f"{thread} was seen in {places.get(thread)}; lost {history['lost']}")
    return wrong


@scenarios.tells("restart")
def killed_and_started_again(subject: Watching) -> Iterator[Finding]:
    subject.agent.process.kill()
    subject.agent.process.wait()
    subject.died.append(subject.agent.process.pid)  # a death like any other
    missed = [subject.let_die(name) for name in ("null", "killed", "exit")]
    subject.agent.restart()
    wrong = []
    for died in missed:
        record = subject.record(died.pid)
        different = differences(died, record, held=False, late=True)
        wrong += [f"{died.death.name}: {what}" for what in different]
    pattern = subject.agent.settings.read("core_pattern")
    if subject.holds == (pattern == BEFORE):
        wrong.append(f"core_pattern is {pattern!r}")
    wrong += differences(*subject.death("null"), held=subject.holds)
    yield judged("restart", wrong)


@scenarios.tells("alone")
def nothing_else(subject: Watching) -> Iterator[Finding]:
    """No death is on record twice, and none that is this process's or the agent's own doing."""
    listed = subject.verb_json("list", "--json")
    found = Counter(record["pid"] for record in listed)
    wrong = [f"pid {pid} is on record {n} times" for pid, n in found.items() if n > 1]
    wrong += [f"pid {pid} is not on record" for pid in subject.died if pid not in found]
    ours = {os.getpid(), subject.agent.process.pid}
    for record in listed:
        own = record["ppid"] in ours or record["comm"].startswith("coreward-")
        if own and record["pid"] not in subject.died:
            wrong.append(f"{record['comm']} ({record['reason']}) is on record")
    yield judged("alone", wrong)


@scenarios.tells("settings")
def settings_put_back(subject: Watching) -> Iterator[Finding]:
    status = subject.agent.stop()
    found = {
        name: subject.agent.settings.read(name) for name in ("core_pattern", "core_pipe_limit")
    }
    wanted = {"core_pattern": BEFORE, "core_pipe_limit": "0"}
    wrong = [] if found == wanted else [f"{found}"]
    wrong += [f"the agent ended with {status}"] if status else []
    wrong += [line for line in subject.agent.lines if "Traceback" in line]
    yield judged("settings", wrong)


@scenarios.tells("equality")
def equal_to_the_kernels(subject: Watching) -> Iterator[Finding]:
    """After the agent has stopped: one death, of which both cores are taken."""
    if not subject.holds:
        raise Cannot("no hand-off: hold.backend is none")
    folder = subject.folder / "equality"
    folder.mkdir(mode=0o700)
    with open_probe(subject.here.loader, subject.agent.pins) as probe:
        backend: SocketBackend | PipeBackend
        if subject.here.handoff == "socket":
            backend = SocketBackend(folder / "core.sock")
        else:
            helper = find(NAME)
            assert helper is not None
            backend = PipeBackend(folder, helper)
        with contextlib.closing(backend):
            cores = two_cores(
                *(probe, backend, subject.agent.settings, folder),
                *("mixed", str(folder / "mapped.bin")),
            )
    with CoreFile(cores.kernel) as kernel, CoreFile(cores.ours) as ours:
        yield judged("equality", list(_core_differences(kernel, ours)))


def _core_differences(kernel: CoreFile, ours: CoreFile) -> Iterator[str]:
    if len(kernel.threads) != 51:
        yield f"the kernel's core has {len(kernel.threads)} threads"
    wanted = {thread.tid: plain_thread(thread) for thread in kernel.threads}
    found = {thread.tid: plain_thread(thread) for thread in ours.threads}
    if ours.threads[0].tid != kernel.threads[0].tid:
        yield f"thread {ours.threads[0].tid} comes first"
    for tid in sorted(wanted | found):
        if wanted.get(tid) != found.get(tid):
            yield f"thread {tid}: {found.get(tid)}, not {wanted.get(tid)}"[:1000]
    for name in ("siginfo", "auxv"):
        if getattr(kernel, name) != getattr(ours, name):
            yield f"{name}: {getattr(ours, name)}, not {getattr(kernel, name)}"
    for name in ("files", "psinfo", "xsave_layout"):
        one, two = getattr(kernel.notes, name), getattr(ours.notes, name)
        older = name == "xsave_layout" and one is None  # a note of Linux 6.12 and later
        if one != two and not older:
            yield f"{name}: {two}, not {one}"[:1000]
    for placed, other in zip(kernel.segments, ours.segments, strict=False):
        if placed.segment != other.segment:
            yield f"segment {other.segment}, not {placed.segment}"
    if len(kernel.segments) != len(ours.segments):
        yield f"{len(ours.segments)} segments, not {len(kernel.segments)}"
    if places := memory_differences(kernel, ours):
        yield f"memory is different at {', '.join(places[:5])}"
