"""`coreward info`."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from collector.cli import places, render
from collector.cli.around import around_lines, log_lines
from collector.cli.calls import last_calls, lost_lines
from collector.cli.choice import id_argument, json_argument, reading
from collector.cli.cores import calls_of, samples_of
from collector.cli.goroutines import goroutines_in_short
from collector.cli.heap import top_lines
from collector.cli.killer import killer_lines
from collector.cli.oom import oom_lines
from collector.cli.opened import bundle_of
from collector.cli.pod import pod_lines
from collector.cli.threads import others_in_short
from collector.cli.why import diagnosis_lines
from collector.errors import StoreError
from collector.explain import kept_threads
from collector.explain.names import code_name
from collector.model import (
    Capture,
    DumpFacts,
    Fault,
    Frame,
    Outcome,
    Record,
    Sender,
    SnapshotFacts,
)
from collector.signals import signal_name
from collector.store.store import Store
from collector.watch.flight import Flight

_TOP_FRAMES, _MOST_TOP_FRAMES = 8, 20
_TOP_LINES = 8  # of threads, and of areas
_LABEL = 12  # columns

Lines = Iterator[tuple[str, object]]  # label, value; None: not known, and not shown


class InfoVerb:
    """Shows everything that is known about one death: what died, why, where, and what was kept
    of it. What could not be had is named under `Lost`."""

    is_paged = True

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        id_argument(parser, or_bundle=True)
        json_argument(parser)

    def run(self, args: argparse.Namespace) -> int:
        with bundle_of(args, whole=False) as bundle, reading(args.store) as store:
            record = store.get(args.id)
            core = store.core_path(record) if bundle is None else bundle.source
            flight = samples_of(store, record) if record.samples else None
            kept = calls_of(store, record) if record.calls else None
            threads = _other_threads(store, record)
        if args.json:
            found = msgspec.to_builtins(record)
            render.print_json({**found, "history": flight.report()} if flight else found)
            return 0
        screen = render.Screen()
        lines = described(record, core, screen)
        lines += ["", screen.bold("The other threads"), *threads] if threads else []
        if flight is not None:
            lines += ["", screen.bold("Before it died"), *_history(flight, screen)]
        if kept is not None and (calls := last_calls(record, kept)):
            more = screen.dim(f"  of all threads: coreward calls {record.id}")
            lines += ["", screen.bold("Last calls of the thread"), *calls, *lost_lines(kept), more]
        print("\n".join(lines))
        return 0


def _other_threads(store: Store, record: Record) -> list[str]:
    try:
        return others_in_short(kept_threads.read(store.place(record)), record)
    except StoreError as error:
        return [f"  {render.clean(error)}"]


def _history(flight: Flight, screen: render.Screen) -> list[str]:
    """Where its threads were in its last minutes."""
    report = flight.report()
    lines = places.lines(report, screen, stacks=False)
    lost = [_line(f"lost {part}", why, screen) for part, why in sorted(report.lost.items())]
    return [f"  {line}" for line in lines] + lost


def described(record: Record, core: Path | None, screen: render.Screen) -> list[str]:
    """The lines that `info` prints."""
    kind = "Snapshot" if record.snapshot else "Death"
    lines = [f"{kind} {record.id}, {screen.moment(record.time, exact=True)}"]
    if record.late:
        lines.append("It happened while the agent was down.")
    for title, group in (
        ("Of what" if record.snapshot else "What died", _who(record)),
        ("Why", _why(record)),
        ("What ran out of memory", oom_lines(record.oom_facts)),
        ("How it was taken", _taken(record.snapshot)),
        ("Around it", around_lines(record)),
        ("What was kept", _kept(record, core)),
        ("Lost", iter(sorted(record.lost.items()))),
    ):
        shown = [_line(label, value, screen) for label, value in group if value is not None]
        lines += ["", screen.bold(title), *shown] if shown else []
        if title == "Why" and record.frames:
            lines += ["", screen.bold("Where"), *_where(record, screen)]
        if title == "Why" and record.goroutines is not None:
            shown = goroutines_in_short(record.goroutines)
            lines += ["", screen.bold("Goroutines"), *shown]
        if title == "Around it" and (said := log_lines(record)):
            lines += ["", screen.bold("The last lines of its unit"), *said]
        if title == "What ran out of memory" and (heap := top_lines(record)):
            lines += ["", screen.bold("Heap"), *heap]
    return lines


def _line(label: str, value: object, screen: render.Screen) -> str:
    return f"  {screen.dim(render.clean(label).ljust(_LABEL))}{render.GAP}{render.clean(value)}"


def _who(record: Record) -> Lines:
    yield "process", f"{record.comm}, pid {record.pid}"
    yield "executable", record.exe
    yield "command", None if record.cmdline is None else shlex.join(record.cmdline)
    yield "thread", _thread(record)
    yield "parent", None if record.ppid is None else f"pid {record.ppid}"
    yield "user", _ids(record)
    yield "unit", record.unit
    yield "cgroup", record.cgroup
    if record.container:
        inside = "" if record.ns_pid is None else f", where its pid was {record.ns_pid}"
        yield "container", f"yes{inside}"
    yield from pod_lines(record.pod)


def _thread(record: Record) -> str:
    name = "" if record.thread_name is None else f"{record.thread_name}, "
    count = "" if record.threads is None else f", of {record.threads}"
    return f"{name}tid {record.tid}{count}"


def _ids(record: Record) -> str | None:
    known = [f"{k} {v}" for k, v in (("uid", record.uid), ("gid", record.gid)) if v is not None]
    return ", ".join(known) or None


def _why(record: Record) -> Lines:
    yield "reason", record.reason
    yield from diagnosis_lines(record.diagnosis)
    yield (
        "cause",
        f"{record.cause.value}, by the out-of-memory killer"
        if (record.oom and record.cause != "oom")
        else record.cause.value,
    )
    yield "trigger", record.trigger
    yield "signal", _signal(record)
    yield "address", _address(record)
    yield "system call", record.syscall
    yield "exit code", record.exit_code
    yield "sender", _sender(record.sender)
    yield from killer_lines(record.killer)
    yield "last fault", _fault(record.last_fault)
    yield "it said", record.abort_message
    yield from _signature_lines(record)
    yield "at", None if record.ip is None else _registers(record.ip, record.sp)
    yield (
        "crash site",
        None
        if record.site is None
        else (f"build-id {record.site.build_id}, offset {record.site.offset:#x}"),
    )


def _signature_lines(record: Record) -> Lines:
    """Which bug it is, and what is known of that."""
    signature = record.signature
    if signature is None or signature.id is None:
        return
    yield "signature", f"{signature.id}  {signature.text}"
    again = "; it came back" if signature.regression else ""
    yield "known", None if signature.note is None else f"{signature.note}{again}"


def _signal(record: Record) -> str | None:
    if record.signal is None:
        return None
    core_bit = ", counted by the kernel as core dumped" if record.core_bit else ""
    name = record.signal_name or signal_name(record.signal)
    return f"{name} ({record.signal}){_code(record.signal, record.si_code)}{core_bit}"


def _code(number: int, code: int | None) -> str:
    return "" if code is None else f", {code_name(number, code) or f'si_code {code}'}"


def _address(record: Record) -> str | None:
    if record.si_addr is None:
        return None
    access = "" if record.fault_access is None else f" ({record.fault_access.value})"
    return f"{record.si_addr:#x}{access}"


def _sender(sender: Sender | None) -> str | None:
    if sender is None:
        return None
    name = f"{sender.comm}, " if sender.comm is not None else ""
    return f"{name}pid {sender.pid}, uid {sender.uid}"


def _fault(fault: Fault | None) -> str | None:
    if fault is None:
        return None
    name = signal_name(fault.signal) + _code(fault.signal, fault.si_code)
    where = f"tid {fault.tid}, {_registers(fault.ip, fault.sp)}"
    return f"{name}, address {fault.si_addr:#x}; the process handled it; {where}"


def _registers(ip: int, sp: int | None) -> str:
    return f"ip {ip:#x}" + ("" if sp is None else f", sp {sp:#x}")


def _top(frames: Sequence[Frame]) -> int:
    """How many are shown: as far as the first functions of an interpreter, if there are any."""
    first = next((n for n, frame in enumerate(frames) if frame.language), 0)
    return max(_TOP_FRAMES, min(first + 3, _MOST_TOP_FRAMES))


def _where(record: Record, screen: render.Screen) -> list[str]:
    frames: Sequence[str] = render.frame_lines(record.frames or [], screen)
    top = _top(record.frames or [])
    shown = [f"  {line}" for line in frames[:top]]
    if len(frames) > top:
        shown.append(f"  and {len(frames) - top} more: coreward bt {record.id}")
    nameless = render.nameless_lines((record.frames or [])[:top])
    return [*shown, *(f"  {line}" for line in nameless)]


def _taken(facts: SnapshotFacts | None) -> Lines:
    """How a snapshot was taken, and what it did to the process."""
    if facts is None:
        return
    yield "mode", facts.mode
    yield "method", f"{facts.method}: {facts.why}"
    yield "consistent", "yes" if facts.consistent else "no: not of one instant"
    yield "stood for", None if facts.pause_ms is None else f"{facts.pause_ms:.2f} ms"
    yield "worst thread", None if facts.worst_ms is None else f"held {facts.worst_ms:.2f} ms"
    for line in _first(facts.unstopped):
        yield "ran on", line
    for line in _first(facts.not_of_instant):
        yield "other time", line


def _first(lines: Sequence[str]) -> Iterator[str]:
    yield from lines[:_TOP_LINES]
    if len(lines) > _TOP_LINES:
        yield f"and {len(lines) - _TOP_LINES} more: coreward info --json"


def _kept(record: Record, core: Path | None) -> Lines:
    yield "captured", _captured(record)
    yield "core", _core(record, core)
    yield "resident", _bytes(record.resident_bytes)
    yield "held", _held(record)
    yield "took", None if record.capture_s is None else f"{record.capture_s:.3f} s"
    yield "rule", record.rule
    if record.redacted:
        yield "redacted", ", ".join(f"{rule} {n}" for rule, n in sorted(record.redacted.items()))
    for facts in record.dumpers or ():
        yield "dumper", _dumper(facts)


def _dumper(facts: DumpFacts) -> str:
    """What a dumper of others did with it."""
    if facts.status is None:
        became = f"gave no status: {facts.note}"
    elif facts.status:
        became = f"failed, {os.strerror(facts.status)}" + (f": {facts.note}" if facts.note else "")
    else:
        became = f"done: {facts.note}" if facts.note else "done"
    waited = "the process waited" if facts.held else "of pinned memory"
    return f"{facts.name} (bid {facts.priority}): {became}; {facts.seconds:.3f} s, {waited}"


def _captured(record: Record) -> str:
    if record.capture == Capture.RECORD and record.outcome == Outcome.RECORDED:
        return "this record only"
    asked = record.capture_wanted
    instead = f" (the policy asked for {asked.value})" if asked != record.capture else ""
    return f"{record.capture.value}, {record.outcome.value}{instead}"


def _core(record: Record, core: Path | None) -> str | None:
    if record.core is None:
        return None
    if core is None:
        return f"{record.core}: the file is gone"
    held = "" if record.core_memory is None else f", holds {render.size(record.core_memory)}"
    on_disk = "" if record.core_size is None else f", {render.size(record.core_size)} on disk"
    return f"{core}{on_disk}{held}"


def _bytes(count: int | None) -> str | None:
    return None if count is None else render.size(count)


def _held(record: Record) -> str | None:
    if record.held_ms is None and record.release is None:
        return None
    held = "for an unknown time" if record.held_ms is None else f"{record.held_ms:.2f} ms"
    release = "" if record.release is None else f", release {record.release.value}"
    reason = "" if record.release_reason is None else f": {record.release_reason}"
    return f"{held}{release}{reason}"
