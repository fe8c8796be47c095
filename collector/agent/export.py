"""export: the record in the store, the metrics, one line. The last stage of every death."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import msgspec

from collector.agent.assemble import CORE_BIT, record_of_held
from collector.agent.context import Context
from collector.agent.crash import Crash
from collector.agent.facts import Descended, Ended, Opened, Sampled, Traced
from collector.agent.naming import named
from collector.agent.owner import name_of, reader_of
from collector.agent.pods import name_pod
from collector.errors import CorewardError
from collector.linux.ancestry import with_ancestors
from collector.linux.host import age_s
from collector.linux.open_files import decode
from collector.model import (
    CallsFacts,
    Capture,
    Cause,
    Outcome,
    ProcessKey,
    Record,
    Release,
    SamplesFacts,
)
from collector.policy.collect import Place
from collector.policy.match import watch_rule
from collector.policy.types import Facts
from collector.redact.ask import redacted
from collector.redact.record import withheld
from collector.redact.types import Redact
from collector.store.encoding import utf8_only
from collector.store.ids import record_id
from collector.store.owners import for_its_reader
from collector.watch.client import Answer

log = logging.getLogger(__name__)

_UNOPENED = (
    "the files behind {} shared mappings were not kept open: of a mapping above 64 MiB the core "
    "has only what this process used"
)


def open_held(context: Context, crash: Crash) -> None:
    """Begin the record of a process that was handed over; on disk before its core is begun."""
    seen, gathered, decided = crash.seen, crash.gathered, crash.decided
    dying, facts, action = gathered.dying, decided.facts, decided.decision.action
    lost = {"memory": decided.admission.reason} if decided.admission.reason else {}
    if decided.stage is not None and decided.stage.why is not None:
        lost.setdefault("memory", decided.stage.why)
    if decided.admission.capture is not Capture.RECORD:
        if gathered.others > 0:
            lost["instant"] = "others share its memory, and wrote on while it was copied"
        if gathered.unopened:
            lost["shared"] = _UNOPENED.format(gathered.unopened)
    if seen.who is None:
        identity = record_id(context.boot_id, dying.key)
        record = record_of_held(identity, gathered.handoff, dying)
        blind, silent = "the agent has no BPF", "BPF did not report this death"
        lost["event"] = blind if context.blind else silent
    else:
        record = seen.record(record_id(context.boot_id, seen.who.key), late=False, lost={})
    descriptors, count = decode(gathered.descriptors) if gathered.descriptors else (None, None)
    crash.redact = action.redact
    crash.open(record, "exit")
    at_once = crash.release.mode is Release.INSTANT
    crash.learn(
        Opened(
            owner=name_of(gathered.owner, facts),
            readable_by=reader_of(dying),
            exe=facts.exe,
            cmdline=dying.cmdline,
            cgroup=facts.cgroup,
            unit=facts.unit,
            container=facts.container,
            pod=facts.of_pod,
            resident_bytes=dying.resident if gathered.resident is None else gathered.resident,
            rule=decided.decision.rule,
            capture_wanted=action.capture,
            capture=decided.admission.capture,
            outcome=Outcome.PENDING,
            release=crash.release.mode,
            release_reason=crash.release.reason,
            held_ms=round(gathered.handoff.release(), 3) if at_once else None,
            descriptors=descriptors,
            descriptors_open=count,
        )
    )
    for part, why in lost.items():
        crash.lose(part, why)
    if not decided.explain:
        crash.lose("frames", f"not looked for: {_why_unexplained(crash)}")
    # one of which nothing more is wanted is on disk soon enough, and its events are kept so long
    if (decided.explain or _wants_core(crash)) and crash.keep(context.store):
        recorded(context, crash)
    look_around(crash)
    ask_recorder(context, crash)


def _why_unexplained(crash: Crash) -> str:
    if crash.was_handled:
        return "it would have had to wait"
    if crash.decided.admission.reason is None and crash.decided.like is not None:
        return f"it died where others of signature {crash.decided.like.id} did"
    return "beyond the limit"


def look_around(crash: Crash) -> None:
    """What lies above the process; nobody waits for it by now."""
    record = crash.record
    if record.late or record.ppid is None:
        return
    ancestry, why = with_ancestors([], record.ppid, record.start_ns)
    crash.learn(Descended(ancestry=ancestry))
    if why is not None:
        crash.lose("ancestry", why)


def _wants_core(crash: Crash) -> bool:
    """Whether more than a record is made of it."""
    return crash.decided.admission.capture is not Capture.RECORD


def ask_recorder(context: Context, crash: Crash) -> None:
    """If a watched or traced process has died its samples, and its last calls, become part of the
    record, which waits for them."""
    ask_calls = partial(context.recorder.ask_calls, texts=not crash.redact.texts)
    for part, ask in (("samples", context.recorder.ask), ("calls", ask_calls)):
        if part == "samples" and crash.redact.anything:  # they have memory as it was
            if why := _why_no_samples(context, crash):
                crash.lose(part, why)
            continue
        crash.begin(part)
        if not ask(crash.record, partial(_answered, context, crash, part)):
            end(context, crash, part)


def _why_no_samples(context: Context, crash: Crash) -> str:
    """What is said of them, if there would have been any; else empty.

    The recorder may have some even if no rule names the process any more: it may have had another
    name, or program, when they were taken.
    """
    policy, record = context.policy.policy, crash.record
    facts = Facts(
        cause=Cause.SNAPSHOT,
        exe=record.exe,
        comm=record.comm,
        cgroup=record.cgroup,
        unit=record.unit,
        uid=record.uid,
        container=record.container,
        of_pod=record.pod,
    )
    if watch_rule(policy, facts) is None:
        return ""
    return "not kept: the stacks in them cannot be redacted"


def _answered(context: Context, crash: Crash, part: str, answer: Answer) -> None:
    if isinstance(answer, str):
        crash.lose(part, answer)
    elif isinstance(answer, SamplesFacts):
        crash.learn(Sampled(samples=answer))
    elif isinstance(answer, CallsFacts):
        crash.learn(Traced(calls=answer))
    end(context, crash, part)


def end_of_process(context: Context, crash: Crash) -> None:
    """Its end was seen, or is not waited for any more: the last fact that comes."""
    exited = crash.seen.exit
    if exited is None:
        crash.lose("core_bit", "its exit was not seen")
    else:
        crash.learn(Ended(core_bit=bool(exited.status & CORE_BIT)))
    name_pod(context, crash)
    end(context, crash, "exit")
    recorded(context, crash)


def end(context: Context, crash: Crash, part: str) -> None:
    """A part of the record is done; the last one closes it."""
    if not crash.end(part):
        return
    if not crash.redact.texts:
        _close(context, crash)
    elif not context.lanes.explains.submit(  # looking through its texts takes a tenth of a second
        partial(_close, context, crash, redacted),
        dropped=partial(_close, context, crash, _withheld),
        owner=crash.record.uid,
    ):
        _close(context, crash, _withheld)


Redaction = Callable[[Record, Redact, dict[str, list[str]]], Record]


def _close(context: Context, crash: Crash, redaction: Redaction | None = None) -> None:
    def finish(record: Record) -> Record:
        if redaction is None:
            return record
        return redaction(utf8_only(record), crash.redact, crash.secrets)

    if close(context, crash.record, crash.place, finish):
        crash.stored = True
        recorded(context, crash)


def _withheld(record: Record, _: Redact, __: dict[str, list[str]]) -> Record:
    """Where nobody is left to look through its texts."""
    lost = {
        **record.lost,
        "redaction": "its texts are left out, for the agent was stopped, or busy",
    }
    return withheld(msgspec.structs.replace(record, lost=lost))


def close(
    context: Context,
    record: Record,
    place: Place | None = None,
    finish: Callable[[Record], Record] = lambda record: record,
) -> bool:
    """Store the whole record, count the death, and say it in one line; whether it is on disk.

    If it is not, that is tried again until it is. place: where it died, if that is known. finish:
    makes of the whole record what may be kept.
    """
    from collector.explain.reason import concluded  # noqa: PLC0415 - with the first death

    age = age_s(record.time, record.start_ns)
    record = concluded(msgspec.structs.replace(record, age_s=age, host=context.host))
    record = finish(named(context, record, place))
    record = for_its_reader(record)
    stored = True
    try:
        context.store.put(record)
    except (CorewardError, OSError) as error:
        stored = False
        waits = "it is tried again" if context.unstored.add(record) else "too many wait already"
        log.error("record %s cannot be stored: %s; %s", record.id, error, waits)
        context.metrics.errors.labels("store").inc()
    context.retention.note()
    context.metrics.died(record.cause, record.signal, record.outcome, crash_id=record.id)
    context.metrics.died_in(record.unit, record.cause, record.id)
    context.sinks.tell(record, stored=stored)
    if context.health is not None:
        context.health.log.died(record)
    if context.hooks is not None:
        context.hooks.died(record)
    context.announce(record)
    return stored


def store_again(context: Context) -> None:
    """Try what could not be stored before."""
    for record in context.unstored.again(context.store):
        context.sinks.stored(record)
        if context.probe is not None:
            context.probe.recorded(ProcessKey(record.pid, record.start_ns))


def count(context: Context, cause: Cause, signo: int | None, outcome: Outcome) -> None:
    """Count a death that has no record of its own; `close` counts those that have."""
    context.metrics.died(cause, signo, outcome)


def recorded(context: Context, crash: Crash) -> None:
    """If it is on record, or is not to be: no later agent need be told of it again."""
    on_record = crash.stored or not crash.is_open
    if on_record and context.probe is not None and crash.seen.who is not None:
        context.probe.recorded(crash.seen.who.key)
