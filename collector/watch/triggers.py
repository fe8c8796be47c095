"""When is a process unwell? Health triggers over its samples. Pure: no clock, no I/O.

A condition that is above its bound makes one episode, however long: the trigger fires at its
beginning and is armed again when a sample shows it over. Whether a snapshot is then taken is a
matter of limits, which are not known here.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping

import msgspec

from collector.explain.reason import shown
from collector.policy.types import Condition, Trigger
from collector.sample.types import Sample, ThreadSample
from collector.watch.cgroups import CgroupVitals

_ASLEEP = {Condition.UNINTERRUPTIBLE: "D", Condition.BLOCKED: "SD"}
_OF_PROCESS = (Condition.RESIDENT, Condition.DESCRIPTORS)
_OF_CGROUP = (Condition.MEMORY, Condition.MEMORY_HIGH, Condition.PRESSURE)
_RATES = (Condition.CPU, Condition.MEMORY_HIGH, Condition.PRESSURE)
_Key = tuple[int, int]  # tid and start of a thread


class Vitals(msgspec.Struct, frozen=True, kw_only=True):
    """What a sample does not tell. None: not asked for, or not known."""

    resident: int | None = None  # bytes
    descriptors: int | None = None
    cgroups: CgroupVitals | None = None


class Firing(msgspec.Struct, frozen=True, kw_only=True):
    """A trigger, and what it saw, in words."""

    trigger: Trigger
    why: str


class _Stay(msgspec.Struct):
    """A thread that has not run since."""

    since_ns: int
    last: ThreadSample


class Health:
    """One process under the triggers of its rule; give it every sample, in order."""

    def __init__(self, triggers: Iterable[Trigger]) -> None:
        self._triggers = tuple(triggers)
        self._stays: dict[_Key, _Stay] = {}
        self._still_ns: int | None = None  # since when no thread has run
        self._cpus = 0.0  # between the last two samples
        self._before: Sample | None = None
        self._above: dict[str, int] = {}  # trigger -> since when it has been above its bound, ns
        self._fired: set[str] = set()
        self._judges: Mapping[Condition, Callable[[Trigger, Sample, Vitals], str | None]] = {
            Condition.UNINTERRUPTIBLE: self._asleep,
            Condition.BLOCKED: self._asleep,
            Condition.NO_PROGRESS: self._still,
            Condition.RESIDENT: self._resident,
            Condition.DESCRIPTORS: self._descriptors,
            Condition.CPU: self._busy,
            Condition.MEMORY: self._full,
            Condition.MEMORY_HIGH: self._throttled,
            Condition.PRESSURE: self._stalled,
        }

    @property
    def wants_vitals(self) -> bool:
        """Whether a trigger needs what samples do not tell of the process."""
        return any(trigger.condition in _OF_PROCESS for trigger in self._triggers)

    @property
    def wants_cgroups(self) -> bool:
        """Whether a trigger needs what only the process's cgroups tell."""
        return any(trigger.condition in _OF_CGROUP for trigger in self._triggers)

    def unknown(self, vitals: CgroupVitals) -> list[tuple[str, str]]:
        """Triggers that cannot fire, by name, and why."""
        lost = vitals.lost
        return [(t.name, lost[t.condition]) for t in self._triggers if t.condition in lost]

    def look(self, sample: Sample, vitals: Vitals) -> list[Firing]:
        """The triggers that fire now."""
        self._take_in(sample)
        fired = []
        for trigger in self._triggers:
            why = self._judges[trigger.condition](trigger, sample, vitals)
            if why is None:
                self._above.pop(trigger.name, None)
                self._fired.discard(trigger.name)
                continue
            since = self._above.setdefault(trigger.name, self._since(trigger, sample))
            lasted = (sample.time_ns - since) / 1e9
            if lasted >= trigger.lasting and trigger.name not in self._fired:
                self._fired.add(trigger.name)
                long = f" for {lasted:.0f} s" if trigger.lasting else ""
                fired.append(Firing(trigger=trigger, why=why + long))
        self._before = sample
        return fired

    def _since(self, trigger: Trigger, sample: Sample) -> int:
        """A rate holds since the sample before; all else since it was seen."""
        if trigger.condition in _RATES and self._before is not None:
            return self._before.time_ns
        return sample.time_ns

    def _take_in(self, sample: Sample) -> None:
        """What has changed since the sample before."""
        stays: dict[_Key, _Stay] = {}
        still, spent = True, 0
        for thread in sample.threads:
            key = thread.tid, thread.start_ns
            stay = self._stays.get(key)
            if stay is None:
                still = False
                spent += thread.runtime_ns if self._before is not None else 0
            else:
                spent += thread.runtime_ns - stay.last.runtime_ns
            if stay is None or _has_run(stay.last, thread):
                still = False
                stay = _Stay(sample.time_ns, thread)
            stay.last = thread
            stays[key] = stay
        self._stays = stays
        if not still or self._still_ns is None:
            self._still_ns = sample.time_ns
        passed = sample.time_ns - self._before.time_ns if self._before is not None else 0
        self._cpus = spent / passed if passed else 0.0

    def _asleep(self, trigger: Trigger, sample: Sample, vitals: Vitals) -> str | None:
        """The thread that has slept longest, if that is too long."""
        states, names = _ASLEEP[trigger.condition], trigger.threads
        found = [
            stay
            for stay in self._stays.values()
            if stay.last.state in states
            and (names is None or any(fnmatch.fnmatchcase(stay.last.name, n) for n in names))
        ]
        longest = min(found, key=lambda stay: stay.since_ns, default=None)
        if longest is None:
            return None
        slept = (sample.time_ns - longest.since_ns) / 1e9
        if slept <= trigger.above:
            return None
        thread = longest.last
        where = thread.syscall or thread.wait_channel
        return (
            f"thread `{shown(thread.name)}` ({thread.tid}) has not run for {slept:.0f} s, "
            f"in state {thread.state}" + (f", in {where}" if where else "")
        )

    def _still(self, trigger: Trigger, sample: Sample, vitals: Vitals) -> str | None:
        lasted = (sample.time_ns - (self._still_ns or sample.time_ns)) / 1e9
        if lasted <= trigger.above:
            return None
        return f"none of its {len(sample.threads)} threads has run for {lasted:.0f} s"

    @staticmethod
    def _resident(trigger: Trigger, sample: Sample, vitals: Vitals) -> str | None:
        if vitals.resident is None or vitals.resident <= trigger.above:
            return None
        return f"{vitals.resident >> 20} MiB resident, more than {trigger.above / (1 << 20):.0f}"

    @staticmethod
    def _descriptors(trigger: Trigger, sample: Sample, vitals: Vitals) -> str | None:
        if vitals.descriptors is None or vitals.descriptors <= trigger.above:
            return None
        return f"{vitals.descriptors} open descriptors, more than {trigger.above:.0f}"

    def _busy(self, trigger: Trigger, sample: Sample, vitals: Vitals) -> str | None:
        if self._cpus <= trigger.above:
            return None
        return f"{self._cpus:.2f} CPUs busy, more than {trigger.above:.2f}"

    @staticmethod
    def _full(trigger: Trigger, sample: Sample, vitals: Vitals) -> str | None:
        """The level that will be the first to have nothing left, of those above the bound."""
        levels = vitals.cgroups.memory if vitals.cgroups is not None else ()
        full = [level for level in levels if level.used > trigger.above * level.limit]
        first = min(full, key=lambda level: level.limit - level.used, default=None)
        if first is None:
            return None
        used, limit = first.used >> 20, first.limit >> 20
        host = "the host, as no cgroup of it has a limit,"
        whose = host if first.of is None else _cgroup(first.of)
        return (
            f"{first.used / first.limit:.0%} of the memory of {whose} is in use, "
            f"{used} of {limit} MiB, more than {trigger.above:.0%}"
        )

    @staticmethod
    def _throttled(trigger: Trigger, sample: Sample, vitals: Vitals) -> str | None:
        rates = vitals.cgroups.high if vitals.cgroups is not None else ()
        most = max(rates, key=lambda rate: rate.value, default=None)
        if most is None or most.of is None or most.value <= trigger.above:
            return None
        return (
            f"{_cgroup(most.of)} went beyond its memory.high {most.value:.0f} times a second, "
            f"more than {trigger.above:.0f}"
        )

    @staticmethod
    def _stalled(trigger: Trigger, sample: Sample, vitals: Vitals) -> str | None:
        stalled = vitals.cgroups.stalled if vitals.cgroups is not None else None
        if stalled is None or stalled.value <= trigger.above:
            return None
        host = "the host, as its cgroup has no figure of its own,"
        whose = host if stalled.of is None else _cgroup(stalled.of)
        return (
            f"tasks of {whose} waited for memory {stalled.value:.0%} of the time, "
            f"more than {trigger.above:.0%}"
        )


def _cgroup(directory: str) -> str:
    return f"cgroup `{shown(directory)}`"


def _has_run(before: ThreadSample, now: ThreadSample) -> bool:
    """A thread that has not run since is in the same place."""
    if before.state != now.state:
        return True
    if before.switches is None or now.switches is None:
        return before.runtime_ns != now.runtime_ns
    return before.switches != now.switches or now.state == "R"
