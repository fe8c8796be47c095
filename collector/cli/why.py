"""What `info` shows of a diagnosis: its category, and what that rests on."""

from __future__ import annotations

from collections.abc import Iterator

from collector.diagnosis import Diagnosis, Evidence, Mapping

_NEAR = 1 << 20  # bytes; what is further away says nothing


def diagnosis_lines(found: Diagnosis | None) -> Iterator[tuple[str, object]]:
    """Label and value; a value of None is not shown. What `info` says elsewhere is left out."""
    if found is None:
        return
    evidence = found.evidence
    yield "diagnosis", f"{found.category.value}, {found.confidence.value}"
    yield "instruction", _instruction(evidence)
    yield "null in", ", ".join(evidence.null_registers) or None
    if evidence.address is not None:
        yield "mapping", None if evidence.mapping is None else _mapping(evidence.mapping)
        yield "below", _neighbour(evidence.below)
        yield "above", _neighbour(evidence.above)
    yield "stack", _stack(evidence)
    yield "exception", _exception(evidence)


def _instruction(evidence: Evidence) -> str | None:
    found = evidence.instruction
    if found is None:
        return None
    return f"{found.text or 'none that is known'} ({found.bytes})"


def _mapping(found: Mapping) -> str:
    return f"{found.start:#x}-{found.end:#x} {found.permissions} {found.name or 'of no file'}"


def _neighbour(found: Mapping | None) -> str | None:
    if found is None or found.distance is None or found.distance > _NEAR:
        return None
    return f"{_mapping(found)}, {found.distance:,} bytes off"


def _stack(evidence: Evidence) -> str | None:
    """Only what is not as usual: that the stack pointer is in its stack."""
    if evidence.sp_in_stack or (evidence.stack is None and evidence.sp_in_stack is None):
        return None
    where = "" if evidence.stack is None else f": {_mapping(evidence.stack)}"
    if evidence.sp_in_stack is None:
        return f"one of the program's own making{where}"
    return f"the stack pointer is not in it{where}"


def _exception(evidence: Evidence) -> str | None:
    if evidence.exception is None:
        return None
    return evidence.exception + (f": {evidence.what}" if evidence.what else "")
