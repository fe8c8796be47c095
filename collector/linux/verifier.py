"""What the verifier, or a loader, said when it refused a program: its log, in one line.

A log tells each instruction that was looked at, often thousands; what is wrong with which line of
the source stands at its end. The texts are those of kernel/bpf/verifier.c, libbpf and bcc; where
they are not as expected the last line is given as it is. Pure.
"""

from __future__ import annotations

import re

MAX_LENGTH = 400  # characters of an explanation

_END = re.compile(r"^processed \d+ insns ")
_SOURCE = re.compile(r"^;\s+(?P<code>(?!@ )\S.*?)(?: @ (?P<place>\S+:\d+))?$")
_INSTRUCTION = re.compile(r"^(?:\d+: |from \d+ to \d+|; |R\d+(?:_w)?=)")
_PROGRAM = (
    re.compile(r"prog '([^']+)': BPF program load failed"),
    re.compile(r"Failed to load BPF program b'([^']+)'"),
)
_COMPILER = re.compile(r"^\S+:\d+:\d+: (?:fatal )?error: .*")


def explain(log: str) -> str:
    """The program that was refused, why, and where in its source; else the last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    program = next((found[1] for one in _PROGRAM if (found := one.search(log))), None)
    said = _objection(lines) or _first_error(lines) or (lines[-1] if lines else "no reason given")
    text = f"program `{program}`: {said}" if program else said
    return text if len(text) <= MAX_LENGTH else text[: MAX_LENGTH - 1] + "…"


def _objection(lines: list[str]) -> str | None:
    """The verifier's last word, and the line of source that it was at."""
    ends = [number for number, line in enumerate(lines) if _END.match(line)]
    if not ends:
        return None
    before = lines[: ends[-1]]
    why = before[-1] if before and not _INSTRUCTION.match(before[-1]) else "no reason given"
    for line in reversed(before):
        if source := _SOURCE.match(line):
            place = f" ({source['place']})" if source["place"] else ""
            return f"{why} at `{source['code']}`{place}"
    return why


def _first_error(lines: list[str]) -> str | None:
    """Of a compiler, for all others follow from it."""
    return next((line for line in lines if _COMPILER.match(line)), None)
