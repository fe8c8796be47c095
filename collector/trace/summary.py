"""`-c`: how often each call was made, how long it took, how often it failed. Pure."""

from __future__ import annotations

import msgspec

from collector.trace.layout import Call
from collector.trace.notation import call_name
from collector.trace.symbols import RESTARTS


class Row(msgspec.Struct, kw_only=True):
    """One kind of call."""

    name: str
    calls: int = 0
    errors: int = 0
    total_ns: int = 0  # from entry to exit, with what it waited; of calls whose entry was seen


class Summary:
    """Counts calls by name."""

    def __init__(self) -> None:
        self._rows: dict[str, Row] = {}

    def add(self, call: Call) -> None:
        """Count one that has ended."""
        name = call_name(call)
        row = self._rows.setdefault(name, Row(name=name))
        row.calls += 1
        if call.result is not None and -4096 < call.result < 0 and -call.result not in RESTARTS:
            row.errors += 1
        if call.enter_ns is not None and call.exit_ns is not None:
            row.total_ns += call.exit_ns - call.enter_ns

    def rows(self) -> list[Row]:
        """The most time first."""
        return sorted(self._rows.values(), key=lambda row: (-row.total_ns, row.name))

    def lines(self) -> list[str]:
        """The table, as strace -c -w has it: times are those that pass, not those on a CPU."""
        rows = self.rows()
        whole = sum(row.total_ns for row in rows)
        lines = [
            "% time     seconds  usecs/call     calls    errors syscall",
            "------ ----------- ----------- --------- --------- ----------------",
        ]
        for row in rows:
            share = 100 * row.total_ns / whole if whole else 0.0
            each = row.total_ns / row.calls / 1e3
            errors = str(row.errors) if row.errors else ""
            lines.append(
                f"{share:6.2f} {row.total_ns / 1e9:11.6f} {each:11.0f} {row.calls:9} {errors:>9} "
                f"{row.name}"
            )
        calls, errors_of_all = sum(row.calls for row in rows), sum(row.errors for row in rows)
        each = whole / calls / 1e3 if calls else 0.0
        lines.append(lines[1])
        lines.append(
            f"100.00 {whole / 1e9:11.6f} {each:11.0f} {calls:9} {errors_of_all or '':>9} total"
        )
        return lines
