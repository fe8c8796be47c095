"""The recorder's own process: who is watched, when each is sampled, what is done with it.

One thread looks for processes, takes the samples and talks to the agent. What may take long, the
unwinding of a dead process's stacks and snapshots, is done in lanes beside it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import sys
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec

from collector.errors import CorewardError, ProbeError, ProcessError, Stalled
from collector.introspect import LiveProbe, Process, ProcessIdentity, open_live
from collector.linux import procfs
from collector.linux.procfs import PF_KTHREAD, Stat, parse_stat
from collector.linux.stall import with_stall_guard
from collector.model import ProcessKey, SamplesFacts
from collector.policy.facts import facts_of_living
from collector.policy.match import Watcher, redacts_of_living
from collector.policy.types import Policy, RecorderSettings, Watch
from collector.sample.ring import SampleRing
from collector.sample.sampler import Sampler
from collector.watch import flight
from collector.watch.calls import CallKeeper
from collector.watch.cgroups import LOOK_S, Cgroups, CgroupVitals
from collector.watch.door import Door
from collector.watch.messages import (
    MAX_PACKET,
    Ask,
    AskCalls,
    Counts,
    Fired,
    Rules,
    Samples,
    ToAgent,
    send,
    to_recorder,
)
from collector.watch.trigger_snapshot import SnapshotOrder, trigger_snapshot
from collector.watch.triggers import Firing, Health, Vitals
from collector.workers import Lane

log = logging.getLogger(__name__)

_SCAN_S = 2.0  # between two looks for new processes
_COUNTS_S = 1.0
_KEEP_DEAD_S = 60.0  # the agent asks for a dead process's samples within milliseconds, or never
_ASKED_S = 0.5  # within which it surely asks; until then a dead process's samples are not given up
_DEAD = 32  # of which samples are kept at a time
_SAVES = 64  # dead processes whose samples wait to be unwound
_SNAPSHOTS_MAX = 16
_UNWINDING_S = 30.0
_STUCK = 16  # threads that are left waiting for a process's memory; then the recorder ends


class _Watched:
    """One process and its samples. Only one thread at a time uses it."""

    def __init__(self, process: Process, watch: Watch) -> None:
        self.process = process
        self.watch = watch
        self.ring = SampleRing(watch.keep, watch.memory)
        self.sampler = Sampler(process, self.ring, watch.stack)
        self.health = Health(watch.triggers)
        self.identity: ProcessIdentity = process.identity()
        self.due = time.monotonic()
        self.cgroups: CgroupVitals | None = None  # of the last look at them
        self.cgroups_due = self.due
        self.told: set[tuple[str, str]] = set()  # what of them cannot be known, and why
        self.ended: float | None = None

    def close(self) -> None:
        self.sampler.close()
        self.process.close()


class Recorder:
    """See the module. `run` returns when the agent closes its end."""

    def __init__(self, channel: socket.socket, store: Path) -> None:
        self._channel = channel
        self._store = store
        self._probe: LiveProbe | None = None
        self._rules: dict[str, Watch] = {}
        self._watcher: Watcher[Watch] = Watcher(())
        self._settings = RecorderSettings()
        self._min_free = 0
        self._live: dict[int, _Watched] = {}  # by pid
        self._dead: deque[_Watched] = deque()
        self._known: dict[int, tuple[int, str]] = {}  # pid -> start and comm when looked at
        self._left_out: dict[int, Watch] = {}  # by pid: there was no room, and may be later
        self._turn: threading.Thread | None = None  # that has its turn to run
        self._looking: int | None = None  # the pid of the process that it looks at
        self._stuck = 0  # threads that were left behind
        self._shunned: set[tuple[int, int]] = set()  # pid and start of those that keep us waiting
        self._fired: dict[tuple[str, str], deque[float]] = defaultdict(deque)
        self._counts: Counter[str] = Counter()
        self._cgroups = Cgroups()
        self._calls = CallKeeper(self._tell)
        self._door = Door(store)
        self._saves = Lane("save", 1, _SAVES)
        self._snapshots = Lane("snapshot", 1, _SNAPSHOTS_MAX)

    def run(self) -> None:
        with contextlib.ExitStack() as parts:
            try:
                self._probe = parts.enter_context(open_live())
            except ProbeError as error:
                log.warning("watch: samples without registers: %s", error)
            while True:
                try:
                    with_stall_guard(lambda: self._looking, self._run)
                    break
                except Stalled as error:
                    self._shun(error)
        self._door.close()
        self._calls.close()
        for lane in (self._saves, self._snapshots):  # what is asked for is still done
            lane.wait_idle(_UNWINDING_S)

    def _run(self) -> None:
        """Until the agent closes its end. In a thread; another takes over if it is kept waiting."""
        self._turn = threading.current_thread()
        scan = counts = 0.0
        while self._receive():
            now = time.monotonic()
            if now >= scan:
                if self._rules:
                    self._scan()
                self._calls.scan()
                scan = now + _SCAN_S
            self._calls.take()
            for ask, asker in self._door.questions():
                self._door.answer(asker, self._calls.of_living(ask))
            if now >= counts:
                self._tell_counts()
                counts = now + _COUNTS_S
            self._sample_due()
            self._forget_dead()
            dues = [watched.due for watched in self._live.values()]
            if (due := self._calls.due) is not None:
                dues.append(due)
            self._wait(min([counts, scan, *dues]))

    @contextlib.contextmanager
    def _looking_at(self, pid: int) -> Iterator[None]:
        """Around whatever reads memory of a process."""
        self._looking = pid
        try:
            yield
        finally:
            if self._turn is not threading.current_thread():
                sys.exit()  # another has taken over: this ends the thread alone
            self._looking = None

    def _shun(self, error: Stalled) -> None:
        """Never touch a process's memory again; the thread that does stays as it is."""
        self._looking = None
        self._stuck += 1
        watched = self._live.get(error.pid)
        if self._stuck > _STUCK:
            raise error
        if watched is not None:
            log.warning("watch: %s; its stacks are not sampled any more", error)
            watched.sampler.go_blind(str(error))
            return
        log.warning("watch: %s; it is left out", error)
        self._counts["refused"] += 1
        self._shunned.add((error.pid, self._known.get(error.pid, (0, ""))[0]))

    def _wait(self, until: float) -> None:
        """For a message, the end of a process, or the time."""
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        if (calls := self._calls.descriptor) is not None:
            poll.register(calls, select.POLLIN)
        for asker in self._door.descriptors:
            poll.register(asker, select.POLLIN)
        ends = {watched.process.fileno(): watched for watched in self._live.values()}
        for fd in ends:
            poll.register(fd, select.POLLIN)
        for fd, _ in poll.poll(max(0.0, until - time.monotonic()) * 1000):
            if fd in ends:
                self._has_ended(ends[fd])

    # ---- the agent

    def _receive(self) -> bool:
        """All that the agent has said; False: it is gone, or wants us to end."""
        while True:
            try:
                packet = self._channel.recv(MAX_PACKET, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not packet:
                return False
            message = to_recorder.decode(packet)
            if isinstance(message, Rules):
                self._take_rules(message)
                self._calls.configure(message.trace, message.kubernetes)
                if message.trace:
                    self._door.open()
                else:
                    self._door.close()
            elif isinstance(message, AskCalls):
                self._calls.give(message)
            else:
                self._give(message)

    def _tell(self, message: ToAgent) -> None:
        with contextlib.suppress(CorewardError):  # it counts what it has lost
            send(self._channel, message)

    def _take_rules(self, rules: Rules) -> None:
        """Watch by these from now on; a process whose rule is unchanged keeps its samples."""
        self._rules = {watch.name: watch for watch in rules.watch}
        self._settings = rules.settings
        self._min_free = rules.min_free
        self._policy = Policy(
            defaults=rules.defaults, rules=rules.rules, kubernetes=rules.kubernetes
        )
        self._watcher = Watcher(rules.watch, rules.kubernetes)
        self._known.clear()
        self._left_out.clear()
        for watched in list(self._live.values()):
            if self._rules.get(watched.watch.name) != watched.watch:
                del self._live[watched.process.pid]
                watched.close()

    def _tell_counts(self) -> None:
        held = [*self._live.values(), *self._dead]
        self._tell(
            Counts(
                processes=len(self._live),
                bytes=sum(watched.ring.bytes for watched in held),
                samples=self._counts["samples"],
                refused=self._counts["refused"],
                traced=self._calls.threads,
            )
        )

    def _give(self, ask: Ask) -> None:
        """The samples of a process that has died, or is about to: nobody samples it any more."""
        key = ProcessKey(ask.pid, ask.start_ns)
        for watched in (*self._live.values(), *self._dead):
            if watched.process.key.is_same(key):
                break
        else:
            self._tell(Samples(record=ask.record))
            return
        self._live.pop(ask.pid, None)
        with contextlib.suppress(ValueError):
            self._dead.remove(watched)
        if not self._saves.submit(partial(self._save, watched, ask)):
            watched.close()
            self._tell(Samples(record=ask.record, lost="too many were waiting to be unwound"))

    def _save(self, watched: _Watched, ask: Ask) -> None:
        """Unwind, write, answer. In a lane."""
        room = f"{watched.watch.memory >> 10} KiB"
        none = f"none fits into {room}" if watched.ring.dropped else "it died before its first"
        answer = Samples(record=ask.record, lost=none)
        try:
            if len(watched.ring):
                facts = self._written(watched, Path(ask.folder))
                answer = Samples(record=ask.record, facts=facts)
        except (CorewardError, OSError) as error:
            answer = Samples(record=ask.record, lost=str(error))
        finally:
            watched.close()
            self._tell(answer)

    @staticmethod
    def _written(watched: _Watched, folder: Path) -> SamplesFacts:
        sampler = watched.sampler
        found = sampler.backtraces(_UNWINDING_S, nice=19)
        lost = {**sampler.lost, **found.lost}
        if watched.ring.dropped:
            lost["oldest"] = (
                f"{watched.ring.dropped} samples did not fit into {watched.watch.memory >> 10} KiB"
            )
        made = flight.flight_of(
            watched.watch.name,
            watched.identity,
            watched.ring,
            sampler.ground_fds,
            dict(found.frames),
            lost,
        )
        flight.write(made, folder)
        return made.facts

    # ---- processes

    def _scan(self) -> None:
        """Look for processes that a rule matches, or that have become another program."""
        present = set(procfs.process_ids())
        self._known = {pid: seen for pid, seen in self._known.items() if pid in present}
        self._left_out = {pid: watch for pid, watch in self._left_out.items() if pid in present}
        for watched in list(self._live.values()):
            if not watched.process.alive:  # its room may be the next one's
                self._has_ended(watched)
        ours = {os.getpid(), os.getppid()}
        for pid in present - ours:
            try:
                with open(f"/proc/{pid}/stat", "rb") as file:
                    stat = parse_stat(file.read(4096))
            except (OSError, ValueError, IndexError):
                continue
            if (pid, stat.start_ns) in self._shunned:
                continue
            seen = stat.start_ns, stat.comm
            left_out = self._left_out.get(pid)
            if self._known.get(pid) == seen and (left_out is None or self._no_room(left_out)):
                continue
            self._known[pid] = seen
            # not the kernel's threads, nor zombies, nor what the agent and we have started
            if not stat.flags & PF_KTHREAD and not _has_ended(stat) and stat.ppid not in ours:
                with self._looking_at(pid):
                    self._consider(pid)

    def _consider(self, pid: int) -> None:
        self._left_out.pop(pid, None)
        watch = self._watcher.rule_of(pid)
        old = self._live.get(pid)
        if old is not None and not old.process.alive:  # the pid is another's already
            self._has_ended(old)
        elif old is not None:
            if watch is not None and old.watch == watch:
                with contextlib.suppress(ProcessError):
                    old.identity = old.process.identity()
                return
            del self._live[pid]
            old.close()
        if watch is None:
            return
        if (bound := self._no_room(watch)) is not None:
            self._left_out[pid] = watch
            self._counts["refused"] += 1
            log.warning("watch: process %d is left out: recorder.%s is used up", pid, bound)
            return
        process = None
        try:
            process = Process(pid, probe=self._probe, use_bpf=False)
            self._live[pid] = _Watched(process, watch)
        except ProcessError as error:
            if process is not None:
                process.close()
            self._known.pop(pid, None)  # it may only have been between two programs
            log.info("watch: process %d: %s", pid, error)

    def _no_room(self, watch: Watch) -> str | None:
        """What leaves no room for one more; None: there is room.

        The living come before the dead that nobody has asked for.
        """
        if len(self._live) >= self._settings.processes:
            return "processes"
        just_now = time.monotonic() - _ASKED_S
        while True:
            held = sum(watched.watch.memory for watched in (*self._live.values(), *self._dead))
            if held + watch.memory <= self._settings.memory:
                return None
            if not self._dead or (self._dead[0].ended or 0.0) > just_now:
                return "memory"
            self._dead.popleft().close()

    def _has_ended(self, watched: _Watched) -> None:
        """Its samples are kept until the agent asks for them."""
        if self._live.pop(watched.process.pid, None) is not None:
            watched.ended = time.monotonic()
            self._dead.append(watched)

    def _forget_dead(self) -> None:
        long_ago = time.monotonic() - _KEEP_DEAD_S
        while self._dead and (
            len(self._dead) > _DEAD or (self._dead[0].ended or long_ago) <= long_ago
        ):
            self._dead.popleft().close()

    # ---- samples

    def _sample_due(self) -> None:
        for watched in list(self._live.values()):
            now = time.monotonic()
            if watched.due > now:
                continue
            try:
                with self._looking_at(watched.process.pid):
                    sample = watched.sampler.take()
                done = time.monotonic()
                # late or not, it takes no more than half of our time
                watched.due = max(watched.due + watched.watch.every, done + (done - now))
            except ProcessError as error:
                if watched.process.alive:
                    watched.sampler.lost["samples"] = str(error)
                    watched.due = now + max(_SCAN_S, watched.watch.every)
                else:
                    self._has_ended(watched)
                continue
            self._counts["samples"] += 1
            for firing in watched.health.look(sample, self._vitals(watched)):
                self._fire(watched, firing)

    def _vitals(self, watched: _Watched) -> Vitals:
        vitals = Vitals(cgroups=self._look_at_cgroups(watched))
        if not watched.health.wants_vitals:
            return vitals
        with contextlib.suppress(ProcessError, OSError):
            return msgspec.structs.replace(
                vitals,
                resident=watched.process.resident_bytes(),
                descriptors=watched.process.descriptors(),
            )
        return vitals

    def _look_at_cgroups(self, watched: _Watched) -> CgroupVitals | None:
        """Once in LOOK_S, however often its threads are sampled. What is new is said, once."""
        now = time.monotonic()
        if watched.health.wants_cgroups and now >= watched.cgroups_due:
            watched.cgroups_due = now + LOOK_S
            watched.cgroups = None
            with contextlib.suppress(ProcessError):
                watched.cgroups = self._cgroups.look(watched.process.cgroup())
        if watched.cgroups is None:
            return None
        for name, why in watched.health.unknown(watched.cgroups):
            if (name, why) not in watched.told:
                watched.told.add((name, why))
                pid = watched.process.pid
                log.warning("watch: process %d: trigger %s cannot fire: %s", pid, name, why)
        return watched.cgroups

    # ---- triggers

    def _fire(self, watched: _Watched, firing: Firing) -> None:
        trigger = firing.trigger
        fired = Fired(
            rule=watched.watch.name,
            trigger=trigger.name,
            outcome="limited",
            why=f"process {watched.process.pid} ({watched.identity.comm}): {firing.why}",
        )
        past = self._fired[fired.rule, trigger.name]
        now = time.monotonic()
        while past and past[0] <= now - trigger.period:
            past.popleft()
        if len(past) >= trigger.snapshots:
            self._tell(fired)
            return
        past.append(now)
        order = SnapshotOrder(
            store=str(self._store),
            key=watched.process.key,
            rule=fired.rule,
            trigger=f"{trigger.name}: {firing.why}",
            mode=trigger.mode,
            capture=trigger.capture,
            min_free=self._min_free,
            redact=redacts_of_living(
                self._policy, facts_of_living(watched.process.pid, self._policy.kubernetes.root)
            ),
        )
        if not self._snapshots.submit(partial(self._snapshot, order, fired)):
            self._tell(_failed(fired, "too many snapshots were waiting"))

    def _snapshot(self, order: SnapshotOrder, fired: Fired) -> None:
        """Have a snapshot taken, and tell of it. In a lane."""
        try:
            record = trigger_snapshot(order)
        except CorewardError as error:
            self._tell(_failed(fired, str(error)))
        else:
            self._tell(msgspec.structs.replace(fired, outcome="snapshot", record=record))


def _has_ended(stat: Stat) -> bool:
    """Whether it is a zombie; one of several threads is only the main one, which has ended."""
    return stat.state == "Z" and stat.threads <= 1


def _failed(fired: Fired, why: str) -> Fired:
    return msgspec.structs.replace(fired, outcome="failed", why=f"{fired.why}; {why}")
