"""What the stages of the agent share: its parts, made once, and the lanes that they work in."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from collector.agent.armed import ArmedProcesses
from collector.agent.copy import Copies
from collector.agent.lend import Lender
from collector.agent.oom import Ooms
from collector.agent.registry import Registry
from collector.agent.release import Pins
from collector.agent.retain import Retention
from collector.agent.room import Room
from collector.agent.sender import Senders
from collector.agent.unstored import Unstored
from collector.circumstances import HostFacts
from collector.export.metrics import Metrics
from collector.handoff.backends import NoBackend, OpenBackend
from collector.handoff.native import Native
from collector.linux import journal
from collector.linux.host import read_host
from collector.model import Record
from collector.policy.collect import Places
from collector.policy.holder import PolicyHolder
from collector.policy.limit import Limiter
from collector.policy.types import CaptureSettings
from collector.probe.probe import Probe
from collector.sinks.sinks import Sinks
from collector.store.store import Store
from collector.watch.client import FlightRecorder
from collector.workers import Lane

if TYPE_CHECKING:
    from collector.agent.hooks import Hooks
    from collector.dumpers.hub import Hub
    from collector.health.interface import HealthInterface
    from collector.pods.known import Pods
    from collector.probe.armed import ArmedProbe

HANDOFF_WORKERS = 8  # each decides for one process, which was released already
HANDOFF_QUEUE = 4096
DUMP_WORKERS = 4
HANDOFF_NICE = -5  # of whoever decides about processes; those who take them come before (pool.h)
RECORD_QUEUE = 1 << 16
EXPLAIN_QUEUE = 256
UNIT_QUEUE = 64
EXPLAIN_BYTES = 128 << 20  # of small cores in memory that wait to be explained, in each lane
CAPTURE_BYTES = 64 << 20  # of mappings and registers of what waits for its writer
COPY_WORKERS = 8  # each waits for a writer that copies
COPY_QUEUE = 256


class Lanes:
    """Where the work is done: what waits in one lane does not hold up another."""

    def __init__(self, settings: CaptureSettings, store: Store) -> None:
        self.handoffs = Lane("handoff", HANDOFF_WORKERS, HANDOFF_QUEUE)
        # between dumpers of others, and after them: processes wait for it
        self.dumps = Lane("dump", DUMP_WORKERS, HANDOFF_QUEUE, nice=HANDOFF_NICE)
        # one more for those that are held: what others have died of keeps no process waiting
        self.captures = Lane(
            "capture", settings.workers, settings.queue, reserved=1, most_bytes=CAPTURE_BYTES
        )
        self.writers = settings.workers + 1  # at most, at a time
        # in a storm one flush of the disk does for many records
        self.records = Lane("record", 1, RECORD_QUEUE, together=store.batch)
        # a process waits for each: nothing that takes long is done here
        self.copies = Lane("copy", COPY_WORKERS, COPY_QUEUE, of_one=COPY_WORKERS // 2)
        self.explains = Lane("explain", 1, EXPLAIN_QUEUE, most_bytes=EXPLAIN_BYTES)
        # of what was killed, which may be much on a busy host: no crash waits behind that
        self.kills = Lane("kill", 1, EXPLAIN_QUEUE, most_bytes=EXPLAIN_BYTES)
        self.units = Lane("unit", 1, UNIT_QUEUE)  # each waits for systemd, two seconds at most

    def all(self) -> tuple[Lane, ...]:
        """In the order in which they hand work on."""
        explains = (self.explains, self.kills, self.units)
        return self.handoffs, self.dumps, self.records, self.copies, self.captures, *explains


@dataclasses.dataclass(kw_only=True)
class Context:
    """The parts of one agent, and what they remember between two deaths."""

    policy: PolicyHolder
    probe: Probe | None
    store: Store
    backend: OpenBackend | NoBackend
    metrics: Metrics
    announce: Callable[[Record], None]
    lanes: Lanes
    recorder: FlightRecorder
    native: Native
    boot_id: str = dataclasses.field(
        default_factory=lambda: Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    )
    has_journal: bool = dataclasses.field(default_factory=journal.is_there)
    host: HostFacts = dataclasses.field(default_factory=read_host)
    registry: Registry = dataclasses.field(default_factory=Registry)
    places: Places = dataclasses.field(default_factory=Places)
    limiter: Limiter = dataclasses.field(default_factory=Limiter)
    # of explanations: a process that is killed again and again uses up no captures of crashes
    kill_limiter: Limiter = dataclasses.field(default_factory=Limiter)
    armed: ArmedProcesses = dataclasses.field(default_factory=ArmedProcesses)
    armed_probe: ArmedProbe | None = None  # while processes are armed
    # of their captures: a service that is stopped every minute uses up none of crashes
    arm_limiter: Limiter = dataclasses.field(default_factory=Limiter)
    pins: Pins = dataclasses.field(default_factory=Pins)
    ooms: Ooms = dataclasses.field(default_factory=Ooms)
    senders: Senders = dataclasses.field(default_factory=Senders)
    lender: Lender | None = None
    dumpers: Hub | None = None  # from the first one on
    open_hub: Callable[[], Hub] | None = None  # makes it, if there is none yet
    run_dir: Path = Path("/run/coreward")
    health: HealthInterface | None = None  # where policy wants it
    copies: Copies = dataclasses.field(default_factory=Copies)
    room: Room = dataclasses.field(init=False)
    hooks: Hooks | None = None  # from the first one on
    retention: Retention = dataclasses.field(default_factory=Retention)
    sinks: Sinks = dataclasses.field(init=False)
    unstored: Unstored = dataclasses.field(default_factory=Unstored)
    taking_events: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.room = Room(self.store)
        self.sinks = Sinks(self.store)

    @property
    def blind(self) -> bool:
        """Whether there is no BPF: nobody tells the ends of processes."""
        return self.probe is None

    @functools.cached_property
    def pods(self) -> Pods:
        """Those of this node, from the first one on."""
        from collector.pods.known import Pods  # noqa: PLC0415 - most hosts have none

        return Pods(Path(self.policy.policy.kubernetes.root))

    @property
    def has_handoff(self) -> bool:
        return not isinstance(self.backend, NoBackend)

    def record(self, task: Callable[[], object]) -> None:
        """Have a record made, after those that wait already."""
        if not self.lanes.records.submit(task):
            self.metrics.errors.labels("record").inc()
