"""The texts of a record in which a secret may stand, and the record without it. Pure.

Texts that the process controls, or that others wrote about it: names, arguments, messages, lines of
its journal. Numbers, names of functions and of files of code stay: they come from elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from collector.circumstances import Pod
from collector.model import Record, Relative
from collector.redact.types import Redact
from collector.redact.words import hidden_arguments, is_named

HIDDEN = "[redacted]"


def withheld(record: Record) -> Record:
    """The record without all such texts: of one that nobody has looked through yet."""
    return replace(
        record,
        cmdline=record.cmdline and [record.cmdline[0], *([HIDDEN] if record.cmdline[1:] else [])],
        killer=record.killer and replace(record.killer, cmdline=None),
        reason=None,
        diagnosis=None,
        abort_message=None,
        thread_name=None,
        attributes=dict.fromkeys(record.attributes, HIDDEN),
        logs=None,
        descriptors=None,
        pod=record.pod and _pod(record.pod, lambda _: HIDDEN),
        runtime=record.runtime and replace(record.runtime, report=None),
    )


def _pod(pod: Pod, hide: Callable[[str], str]) -> Pod:
    """Its labels and annotations, which are of whoever made it; its names stay."""
    return replace(
        pod,
        labels={name: hide(value) for name, value in pod.labels.items()},
        annotations={name: hide(value) for name, value in pod.annotations.items()},
    )


def concealed(record: Record, redact: Redact, hide: Callable[[str], str]) -> Record:
    """The record with its texts as `hide` gives them back."""

    def maybe(text: str | None) -> str | None:
        return None if text is None else hide(text)

    def all_of(words: list[str] | None) -> list[str] | None:
        return None if words is None else [hide(word) for word in words]

    def arguments(words: list[str] | None) -> list[str] | None:
        hidden = None if words is None else hidden_arguments(words, redact.arguments, HIDDEN)
        return all_of(hidden)

    attributes = {
        name: HIDDEN if is_named(name, redact.environment) else hide(value)
        for name, value in record.attributes.items()
    }

    def relatives(above: list[Relative]) -> list[Relative]:
        return [replace(one, comm=hide(one.comm)) for one in above]

    killer, diagnosis = record.killer, record.diagnosis
    if killer is not None:
        killer = replace(
            killer,
            cmdline=arguments(killer.cmdline),
            comm=maybe(killer.comm),
            exe=maybe(killer.exe),
            parents=relatives(killer.parents),
        )
    if diagnosis is not None:
        evidence = diagnosis.evidence
        evidence = replace(
            evidence,
            message=maybe(evidence.message),
            exception=maybe(evidence.exception),
            what=maybe(evidence.what),
            thread=maybe(evidence.thread),
            comm=maybe(evidence.comm),
        )
        diagnosis = replace(diagnosis, evidence=evidence)
    logs = record.logs and [replace(line, message=hide(line.message)) for line in record.logs]
    opened, sender, runtime, oom = (
        record.descriptors,
        record.sender,
        record.runtime,
        record.oom_facts,
    )
    return replace(
        record,
        comm=hide(record.comm),
        exe=maybe(record.exe),
        cmdline=arguments(record.cmdline),
        thread_name=maybe(record.thread_name),
        reason=maybe(record.reason),
        trigger=maybe(record.trigger),
        abort_message=maybe(record.abort_message),
        attributes=attributes,
        sender=sender and replace(sender, comm=maybe(sender.comm)),
        killer=killer,
        oom_facts=oom and replace(oom, tasks=[replace(t, comm=hide(t.comm)) for t in oom.tasks]),
        ancestry=record.ancestry and relatives(record.ancestry),
        pod=record.pod and _pod(record.pod, hide),
        runtime=runtime and replace(runtime, report=maybe(runtime.report)),
        diagnosis=diagnosis,
        logs=logs,
        descriptors=opened and [replace(one, target=hide(one.target)) for one in opened],
        dumpers=record.dumpers and [replace(one, note=hide(one.note)) for one in record.dumpers],
        lost={part: hide(why) for part, why in record.lost.items()},
    )
