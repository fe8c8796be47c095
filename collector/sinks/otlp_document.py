"""Deaths as an OTLP export of logs, in its JSON encoding (opentelemetry-proto, logs/v1).

A crash is the event `app.crash` of the semantic conventions, any other death `coreward.death`. The
process that died is not the one that reports it: what is known of it are attributes of the event,
the resource is the host. Arguments are left out, for they may hold passwords.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from collector import __version__
from collector.circumstances import Pod
from collector.model import Record
from collector.sinks.text import category, clean, is_crash, signature, stack_trace

Value = str | int | None
_FATAL, _WARN = (21, "FATAL"), (13, "WARN")  # SeverityNumber


def document(records: Iterable[Record], host: str) -> dict[str, Any]:
    """An ExportLogsServiceRequest."""
    resource = [("host.name", host), ("os.type", "linux"), ("service.name", "coreward")]
    return {
        "resourceLogs": [
            {
                "resource": {"attributes": attributes(resource)},
                "scopeLogs": [
                    {
                        "scope": {"name": "coreward", "version": __version__},
                        "logRecords": [log_record(record) for record in records],
                    }
                ],
            }
        ]
    }


def log_record(record: Record) -> dict[str, Any]:
    crash = is_crash(record)
    number, text = _FATAL if crash else _WARN
    return {
        "timeUnixNano": str(round(record.time.timestamp() * 1e6) * 1000),
        "observedTimeUnixNano": str(time.time_ns()),
        "severityNumber": number,
        "severityText": text,
        "eventName": "app.crash" if crash else "coreward.death",
        "body": {"stringValue": clean(record.reason or record.cause.value)},
        "attributes": attributes(_facts(record)),
    }


def attributes(pairs: Iterable[tuple[str, Value]]) -> list[dict[str, Any]]:
    """KeyValues; those that are not known are left out. 64-bit numbers are strings in JSON."""
    return [
        {"key": key, "value": {"intValue": str(value)} if isinstance(value, int) else _text(value)}
        for key, value in pairs
        if value is not None
    ]


def _text(value: str) -> dict[str, str]:
    return {"stringValue": "\n".join(clean(line) for line in value.split("\n"))}


def _facts(record: Record) -> Iterator[tuple[str, Value]]:
    if is_crash(record):
        yield "app.crash.id", record.id
    yield "coreward.id", record.id
    yield "coreward.cause", record.cause.value
    yield "coreward.outcome", record.outcome.value
    yield "coreward.category", category(record)
    yield "coreward.signature", signature(record)
    yield "coreward.rule", record.rule
    yield "coreward.core.size", record.core_size
    yield "coreward.deaths", record.count
    yield "exception.type", record.signal_name or record.cause.value
    yield "exception.message", record.reason
    yield "exception.stacktrace", "\n".join(stack_trace(record)) or None
    yield "process.pid", record.pid
    yield "process.parent_pid", record.ppid
    yield "process.executable.name", record.comm
    yield "process.executable.path", record.exe
    yield "process.user.id", record.uid
    yield "process.exit.code", record.exit_code
    yield "process.linux.cgroup", record.cgroup
    yield "thread.id", record.tid
    yield "thread.name", record.thread_name
    yield "systemd.unit", record.unit
    if record.pod is not None:
        yield from _pod(record.pod)


def _pod(pod: Pod) -> Iterator[tuple[str, Value]]:
    """The semantic conventions of k8s.* and container.*."""
    yield "k8s.namespace.name", pod.namespace
    yield "k8s.pod.name", pod.name
    yield "k8s.pod.uid", pod.uid
    yield "k8s.container.name", pod.container
    yield "container.id", pod.container_id
    yield "container.image.name", pod.image
