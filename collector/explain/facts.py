"""Put what an event or an explanation knows into the record. Pure."""

from __future__ import annotations

import msgspec

from collector import siginfo
from collector.arch.x86_64 import IP, SP
from collector.explain.types import Explanation
from collector.model import FatalSignal, Record
from collector.signature.compose import from_stack


def with_signal(record: Record, event: FatalSignal) -> Record:
    """`record` with the facts of its fatal signal that only `reason` needs."""
    return msgspec.structs.replace(
        record,
        ip=event.regs[IP] if len(event.regs) > IP else None,
        sp=event.regs[SP] if len(event.regs) > SP else None,
        fault_access=event.fault_access,
        syscall=told.syscall if (told := siginfo.decode(event.siginfo)) else None,
    )


def with_explanation(record: Record, explanation: Explanation) -> Record:
    """`record` with what its core said. What the record knows already is not replaced."""
    return msgspec.structs.replace(
        record,
        frames=explanation.frames,
        goroutines=explanation.goroutines,
        signature=from_stack(explanation.stack) or record.signature,
        abort_message=record.abort_message or explanation.abort_message,
        fault_access=record.fault_access or explanation.fault_access,
        diagnosis=record.diagnosis or explanation.diagnosis,
        package=explanation.package,
        runtime=explanation.runtime,
        lost={**record.lost, **explanation.lost},
    )
