"""`coreward run`: the agent in the foreground."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import logging
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING

from collector import logs
from collector.agent.context import Context, Lanes
from collector.agent.lend import Lender
from collector.agent.loop import Agent, allow
from collector.agent.release import Pins
from collector.cli import DEFAULT_CONFIG, lines
from collector.cli.choice import DEFAULT_RUN_DIR
from collector.cli.output import say_no_more
from collector.cli.render import clean
from collector.dumpers.door import Door
from collector.errors import CorewardError, HoldError, ProbeError
from collector.export.metrics import Metrics
from collector.handoff import pin, pipe
from collector.handoff.backends import NoBackend, OpenBackend, open_backend, own_directory
from collector.handoff.native import Native
from collector.handoff.settings import SettingsGuard
from collector.linux import descriptors
from collector.model import Backend, Record
from collector.policy.holder import PolicyHolder
from collector.policy.types import Policy, Takeover
from collector.probe import pins
from collector.probe.probe import Counters, Probe, open_probe
from collector.sinks.sinks import Sinks
from collector.store.size import StoreSize
from collector.store.store import Store, remove_unused
from collector.watch.client import FlightRecorder

if TYPE_CHECKING:
    from collector.dumpers.hub import Hub
    from collector.linux.service_manager import ServiceManager

DEFAULT_PIN_DIR = Path("/sys/fs/bpf/coreward")
SWITCH_INTERVAL_S = 0.0005  # a thread with a held process waits for others at most this long

# <malloc.h>: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD in bytes, M_ARENA_MAX
_MOST_PORT = 65535
_MALLOC = {-1: 1 << 16, -3: 1 << 16, -8: 2}

log = logging.getLogger("coreward")


class RunVerb:
    """Collect crashes until interrupted: one line per death on standard output. SIGHUP reloads
    the configuration. Every system setting that was changed is put back at the end."""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--config",
            type=Path,
            metavar="FILE",
            help=f"policy and settings (default: {DEFAULT_CONFIG} if it exists, else built-in)",
        )
        parser.add_argument(
            "--bpf",
            choices=("auto", "core", "bcc", "none"),
            default="auto",
            help="loader of the BPF programs: the prebuilt object, the on-host compiler, or no BPF:"
            " only what the kernel hands over is seen then",
        )
        parser.add_argument(
            "--degraded",
            action="store_true",
            help="go on even if neither BPF nor a hand-off works here, and no death is seen",
        )
        parser.add_argument(
            "--run-dir",
            type=Path,
            default=DEFAULT_RUN_DIR,
            metavar="DIR",
            help="sockets and saved settings (default: %(default)s)",
        )
        parser.add_argument(
            "--pin-dir",
            type=Path,
            default=DEFAULT_PIN_DIR,
            metavar="DIR",
            help="where the BPF programs stay while the agent is down (default: %(default)s)",
        )
        parser.add_argument(
            "--unpin",
            action="store_true",
            help="detach the BPF programs at the end, instead of recording while it is down",
        )
        parser.add_argument(
            "--debug", action="store_true", help="log all that libbpf and the verifier say, too"
        )
        parser.add_argument(
            "--log-format",
            choices=("text", "json"),
            default="text",
            help="of the lines on standard output and of the log (default: %(default)s)",
        )
        parser.add_argument(
            "--listen", metavar="HOST:PORT", help="instead of `metrics.listen` of the configuration"
        )

    def run(self, args: argparse.Namespace) -> int:
        manager = _service_manager()
        try:
            return self._run(args, manager)
        except BaseException as error:
            if manager is not None:
                _give_up(manager, args.run_dir, error)
            raise

    def _run(  # noqa: PLR0915 - the order of the start
        self, args: argparse.Namespace, manager: ServiceManager | None
    ) -> int:
        if os.geteuid() != 0:
            raise HoldError("the agent needs root: it sees every process's death")
        level = logging.DEBUG if args.debug else logging.INFO
        in_json = args.log_format == "json"
        logs.set_up(level, json=in_json)
        tell = announce_json if in_json else announce
        descriptors.use_all()  # each process that waits has some
        descriptors.make_room()
        config = args.config or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None)
        holder = PolicyHolder(config)
        policy = holder.policy
        if policy.hold.backend is not Backend.NONE:
            _refuse_beside_another(args.run_dir)
        with contextlib.ExitStack() as parts:
            path = args.store if args.store_given else policy.store.path
            made = parts.enter_context(contextlib.ExitStack())
            _undo_new(made, path, remove_unused)
            _undo_new(made, args.run_dir, pipe.remove_unused)
            native = Native()
            store = parts.enter_context(Store(path, create=True))
            store.clean_partial()
            undo = parts.enter_context(contextlib.ExitStack())
            probe = _open_probe(args, parts, undo)
            if probe is not None:
                native.use_bpf(*probe.iterators, probe.tallies.counted)
            metrics = Metrics()
            _serve(metrics, args.listen, policy, parts)
            lender = Lender(args.run_dir)
            _restore_limits(lender)  # of an agent that was killed
            parts.callback(_restore_limits, lender)
            metrics.lent.set_function(lambda: lender.lent)
            watch_store(metrics, store, holder)
            context = Context(
                policy=holder,
                probe=probe,
                store=store,
                backend=NoBackend("the agent was still starting"),
                metrics=metrics,
                announce=tell,
                lanes=Lanes(policy.capture, store),
                recorder=FlightRecorder(store, metrics, tell),
                native=native,
                pins=Pins(native),
                lender=lender,
                run_dir=args.run_dir.absolute(),
            )
            watch_sinks(metrics, context.sinks)
            _prepare_hub(context, parts)
            _open_health(context, parts)
            agent = Agent(context)
            if manager is not None:
                from collector.agent.service import Service  # noqa: PLC0415 - as below

                agent.service = Service(manager, context, agent.wake)
            agent.catch_up()
            gc.collect()
            _keep_small()
            gc.freeze()  # what exists now stays: later collections need not look at it
            # from now on processes wait for us: all that takes time is done
            allow(native, policy)
            backend = context.backend = _open_backend(
                args.run_dir, policy, native, parts, {} if manager is None else manager.kept
            )
            if manager is not None:
                manager.forget_kept()  # of another way than the one that is used now
                if not isinstance(backend, NoBackend):
                    backend.keep(manager.keep, manager.forget)
            blind = probe is None and isinstance(backend, NoBackend)
            if blind and not args.degraded:
                raise _nothing_works(args, backend)
            _open_door(args.run_dir, context, parts)
            watch(metrics, probe, backend, native)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: agent.stop())
            signal.signal(signal.SIGHUP, lambda *_: agent.reload())
            ready = (
                f"{'degraded, no death is seen' if blind else 'ready'}: "
                f"{probe.loader if probe else 'no'} BPF, {backend.backend} hand-off, "
                f"policy {policy.source}, store {path}"
            )
            _say(lines.of_start(ready) if in_json else ready)
            if backend.reason:
                log.info("hand-off: %s", backend.reason)
            sys.setswitchinterval(SWITCH_INTERVAL_S)
            undo.pop_all()
            made.pop_all()
            agent.run()
        return 0


def _refuse_beside_another(run_dir: Path) -> None:
    """Before the store is opened, which may be the other agent's: what that has begun would be
    taken for what a killed one has left. TakeoverRefused."""
    guard = SettingsGuard(run_dir)
    guard.lock()
    guard.unlock()


def _service_manager() -> ServiceManager | None:
    """The one that has started us, if it wants to hear of us."""
    if "NOTIFY_SOCKET" not in os.environ:
        return None
    from collector.linux import service_manager  # noqa: PLC0415 - for a service, not by hand

    return service_manager.from_environment(os.environ)


def _give_up(manager: ServiceManager, run_dir: Path, error: BaseException) -> None:
    """The agent cannot start, or go on. Who waits in a socket that was kept waits for nobody: it is
    closed, and the kernel's settings are those from before the agents."""
    if isinstance(error, CorewardError):
        manager.tell(f"STATUS={clean(str(error))}")
    if manager.kept:
        manager.forget_kept()
        with contextlib.suppress(HoldError):  # the service's stop hook tries it again
            SettingsGuard(run_dir).restore()


def _undo_new(
    made: contextlib.ExitStack, folder: Path, remove_unused: Callable[[Path], None]
) -> None:
    """If this start makes `folder`, `made` removes it again, and what is made above it."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    for above in reversed(missing[1:]):
        made.callback(_remove_empty, above)
    if missing:
        made.callback(remove_unused, folder)


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # others have put something there meanwhile
        folder.rmdir()


def _keep_small() -> None:
    """Give large blocks back to the system as soon as they are free (mallopt(3))."""
    libc = ctypes.CDLL(None)
    for parameter, value in _MALLOC.items():
        libc.mallopt(parameter, value)
    libc.malloc_trim(0)


def _say(line: str) -> None:
    """In one piece, whichever threads have something to say at the same time; print() is none."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def announce(record: Record) -> None:
    """One line for one finished death."""
    kept = record.capture.value if record.core else record.outcome.value
    held = f", held {record.held_ms:.1f} ms" if record.held_ms is not None else ""
    late = ", while the agent was down" if record.late else ""
    line = f"{record.time.astimezone():%H:%M:%S} {record.id} pid {record.pid}"
    reason = record.reason or record.cause.value
    _try_to_say(
        f"{line} {clean(record.comm)}: {clean(reason)} [{kept}{held}{late}]{_known(record)}"
    )


def announce_json(record: Record) -> None:
    """The same as an object for programs."""
    _try_to_say(lines.of_death(record))


def _try_to_say(line: str) -> None:
    try:
        _say(line)
    except OSError as error:  # nobody reads them any more, or the disk is full
        say_no_more()
        log.warning("no lines any more: stdout cannot be written: %s", error.strerror)


def _known(record: Record) -> str:
    """What a person wrote about such deaths."""
    signature = record.signature
    if signature is None or signature.note is None:
        return ""
    return f" [{'back again' if signature.regression else 'known'}: {clean(signature.note)}]"


def _nothing_works(args: argparse.Namespace, backend: OpenBackend | NoBackend) -> HoldError:
    """Neither way by which a death is seen works here."""
    bpf = "--bpf none" if args.bpf == "none" else "see above"
    return HoldError(
        f"no death can be seen: no BPF ({bpf}), and no hand-off ({backend.reason}); "
        "`coreward doctor` says what is missing, --degraded starts the agent all the same"
    )


def _open_probe(
    args: argparse.Namespace, parts: contextlib.ExitStack, undo: contextlib.ExitStack
) -> Probe | None:
    """undo: for what must not stay if the agent does not start."""
    if args.bpf == "none":
        return None
    is_new = not args.pin_dir.is_dir() or not list(pins.builds(args.pin_dir))
    try:
        probe = parts.enter_context(open_probe(args.bpf, args.pin_dir))
    except ProbeError as error:
        if args.bpf != "auto":
            raise
        log.error("no BPF: deaths without a hand-off will not be seen: %s", error)
        return None
    if args.unpin:
        parts.callback(probe.unpin)
    elif is_new:  # an agent that does not start leaves nothing behind
        undo.callback(probe.unpin)
    if lost := probe.counters().overwritten:
        log.warning(
            "%d deaths are only counted: an agent was killed before it had them on record, "
            "and later events have overwritten theirs",
            lost,
        )
    return probe


def _open_backend(
    run_dir: Path,
    policy: Policy,
    native: Native,
    parts: contextlib.ExitStack,
    kept: MutableMapping[str, int],
) -> OpenBackend | NoBackend:
    guard = SettingsGuard(run_dir)
    hold = policy.hold
    backend = open_backend(
        *(hold.backend, run_dir, guard, native, hold.takeover is not Takeover.NO),
        patience_s=hold.patience,
        kept=kept,
    )
    if not isinstance(backend, NoBackend):
        backend.overwrites.keep = hold.takeover is Takeover.KEEP
    parts.callback(backend.close)
    pin.prepare()
    return backend


def _prepare_hub(context: Context, parts: contextlib.ExitStack) -> None:
    """The dumpers of others: there is a hub from the first one on."""
    hold, metrics, lock = context.policy.policy.hold, context.metrics, threading.Lock()

    def open_hub() -> Hub:
        # most hosts have no dumpers; and no process is to wait for these when it dies
        import collector.agent.dump  # noqa: F401, PLC0415
        from collector.dumpers.hub import Hub  # noqa: PLC0415

        with lock:
            if context.dumpers is None:
                context.dumpers = Hub(
                    hold.bids, hold.max, context.native.bidders, metrics.bids_missed.inc
                )
            return context.dumpers

    def close() -> None:
        if context.dumpers is not None:
            context.dumpers.close(0.0)

    context.open_hub = open_hub
    metrics.dumpers.set_function(lambda: len(context.dumpers.names()) if context.dumpers else 0)
    parts.callback(close)


def _open_health(context: Context, parts: contextlib.ExitStack) -> None:
    """Where policy wants it; without it deaths are seen all the same."""
    settings = context.policy.policy.health
    if settings.socket is None:
        return
    from collector.agent.health import open_health  # noqa: PLC0415 - few policies have it

    try:
        health = context.health = open_health(context, settings)
    except HoldError as error:
        log.error("nobody can ask for health: %s", error)
        return
    parts.callback(health.close)


def _open_door(run_dir: Path, context: Context, parts: contextlib.ExitStack) -> None:
    """Where they register; without it deaths are seen all the same."""
    assert context.open_hub is not None
    try:
        own_directory(run_dir)
        door = Door(run_dir, context.policy.policy.hold.group, context.open_hub)
    except HoldError as error:
        log.error("no dumpers can register: %s", error)
        return
    parts.callback(door.close)


def _restore_limits(lender: Lender) -> None:
    try:
        for line in lender.restore():
            log.info("%s", line)
    except OSError as error:  # deaths are taken all the same
        log.error("limits of memory cgroups: %s", error)


def _serve(
    metrics: Metrics, listen: str | None, policy: Policy, parts: contextlib.ExitStack
) -> None:
    address = policy.metrics_listen
    if listen is not None:
        host, _, port = listen.rpartition(":")
        if not host or not re.fullmatch("[0-9]{1,5}", port) or int(port) > _MOST_PORT:
            raise HoldError(f"--listen {listen}: HOST:PORT is wanted, PORT from 0 to {_MOST_PORT}")
        address = (host, int(port))
    if address is not None:
        parts.callback(metrics.serve(*address))


def watch_store(metrics: Metrics, store: Store, holder: PolicyHolder) -> None:
    """Have metrics say what the store holds, and what room it has."""
    size = StoreSize(store.path)

    def most() -> float:
        wanted = holder.policy.store.max_size
        if wanted is None:
            return math.inf
        return wanted * size.whole() if isinstance(wanted, float) else wanted

    for name, text, read in (
        ("store_records", "Records in the store", lambda: size.held().records),
        ("store_cores", "Cores in the store", lambda: size.held().cores),
        ("store_core_bytes", "Bytes on disk of the cores in the store", lambda: size.held().bytes),
        ("store_free_bytes", "Bytes that may still be written where the store is", size.free),
        ("store_filesystem_bytes", "Size of the file system that the store is on", size.whole),
        (
            "store_min_free_bytes",
            "The policy's `store.min_free`: no core is written that would leave less",
            lambda: holder.policy.store.min_free,
        ),
        (
            "store_max_bytes",
            "The policy's `store.max_size`: beyond it retention removes the oldest",
            most,
        ),
    ):
        metrics.read(name, text, read)


def watch_sinks(metrics: Metrics, sinks: Sinks) -> None:
    """Have metrics say how many deaths the sinks have taken, and how many they will not be told."""
    metrics.watch("sink_sent", "Deaths that a sink has taken", "sink", sinks.sent)
    metrics.watch(
        "sink_lost",
        "Deaths that a sink is not told of: it did not take them, or there was no room to wait",
        "sink",
        sinks.lost,
    )


def watch(
    metrics: Metrics, probe: Probe | None, backend: OpenBackend | NoBackend, native: Native
) -> None:
    """Have metrics say what BPF, the hand-off and the native part count."""
    metrics.agent.info(
        {
            "bpf": "none" if probe is None else str(probe.loader),
            "handoff": "none" if isinstance(backend, NoBackend) else backend.backend,
        }
    )
    if not isinstance(backend, NoBackend):
        metrics.read(
            "core_pattern_ours",
            "1 while the kernel hands crashes over to this agent, 0 if others have changed that",
            backend.is_in_place,
        )
        metrics.watch(
            "core_pattern_overwritten",
            "Times that others wrote kernel.core_pattern while it was ours, by what was done",
            "done",
            lambda: backend.overwrites.counts,
        )
    if probe is not None:
        metrics.watch(
            "deaths_beyond_share",
            "Deaths that BPF only counted: too many of one program or owner at a time",
            "kept",
            lambda: _counted(probe.counters()),
        )
        metrics.watch(
            "probe_events_dropped",
            "Events of BPF that were lost, by what they were of",
            "program",
            lambda: _dropped(probe.counters()),
        )
    metrics.watch(
        "handoffs_refused",
        "Hand-offs that came to nothing, by why",
        "why",
        lambda: {"impostor": backend.refused, "late": backend.late, "memory": native.untold},
    )
    metrics.left_behind.set_function(lambda: native.left_behind)


def _counted(counters: Counters) -> dict[str, int]:
    return {"together": counters.tallied, "no": counters.untallied}


def _dropped(counters: Counters) -> dict[str, int]:
    return {
        "sched_process_exit": counters.dropped_exit,
        "mark_victim": counters.dropped_oom,
        "mappings": counters.dropped_mapped,
        "armed": counters.dropped_armed,
        "started": counters.dropped_started,
        "undecodable": counters.undecodable,
        "overwritten": counters.overwritten,
    }
