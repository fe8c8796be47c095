"""What `info` shows of the time and place of a death: age, host, package, what lies above."""

from __future__ import annotations

from collections.abc import Iterator

from collector.cli.render import clean
from collector.model import Record

_MOST_LINES = 10  # of its unit's log
_MOST_FILES = 8


def around_lines(record: Record) -> Iterator[tuple[str, object]]:
    """Label and value; a value of None is not shown."""
    yield "age", None if record.age_s is None else _duration(record.age_s)
    yield "package", _package(record)
    yield "runtime", _runtime(record)
    yield from sorted(record.attributes.items())
    if record.ancestry:
        yield "started by", " < ".join(f"{one.comm} ({one.pid})" for one in record.ancestry)
    host = record.host
    if host is not None:
        yield "host", f"{host.name}, Linux {host.kernel}"
        yield "CPU", host.cpu
        yield "boot", host.boot_id
    files = record.descriptors
    if files is not None:
        yield "open files", record.descriptors_open or len(files)
        for one in files[:_MOST_FILES]:
            yield f"fd {one.fd}", f"{one.kind}, {one.target}"


def log_lines(record: Record) -> list[str]:
    """The last lines that its unit wrote."""
    lines = (record.logs or [])[-_MOST_LINES:]
    return [
        clean(f"  {line.time.astimezone():%H:%M:%S} {line.pid or '-'}: {line.message}")
        for line in lines
    ]


def _package(record: Record) -> str | None:
    found = record.package
    return None if found is None else f"{found.name} {found.version} (by {found.source})"


def _runtime(record: Record) -> str | None:
    found = record.runtime
    if found is None:
        return None
    told = f"{found.name.capitalize()} {found.version or '(version not known)'}"
    if found.report is not None:
        told += f", its report was {found.report}"
        told += f", {found.report_file} beside the record" if found.report_file else ""
    return told + (f"; {found.lost}" if found.lost else "")


def _duration(seconds: float) -> str:
    """As people say it: `45.2 s`, `3 h 12 min`, `8 d 4 h`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = int(seconds) // 60
    if minutes < 60:
        return f"{minutes} min {int(seconds) % 60} s"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes // 60 % 24} h"
