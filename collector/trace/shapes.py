"""Where each call has its texts, for the programs that copy them (struct cw_call_shape). Pure."""

from __future__ import annotations

from collector.arch.call_sets import NUMBERS
from collector.arch.signatures import signature
from collector.arch.syscalls import syscall_name
from collector.arch.x86_64 import CODE_32_BIT
from collector.trace.layout import (
    LENGTH_FIXED,
    LENGTH_RESULT,
    LENGTH_STRING,
    SHAPE,
    TEXT_IN,
    TEXT_OUT,
    TEXTS,
)

_INT = 4  # bytes


def shape(name: str | None) -> bytes:
    """Where the call has its texts: a struct cw_call_shape, the first ones if there are more."""
    found, texts = signature(name), []
    for argument, (kind, size) in enumerate(zip(found.kinds, found.sizes, strict=True)):
        match kind:
            case "path" | "str":
                texts.append((TEXT_IN, argument, LENGTH_STRING, 0))
            case "in" | "addr":
                texts.append((TEXT_IN, argument, size, 0))
            case "out":
                texts.append((TEXT_OUT, argument, LENGTH_RESULT, 0))
            case "ints" | "status":
                texts.append((TEXT_OUT, argument, LENGTH_FIXED, size or _INT))
    texts = [*texts[:TEXTS], *[(0, 0, 0, 0)] * (TEXTS - len(texts))]
    return SHAPE.pack(*(number for text in texts for number in text))


def shapes() -> bytes:
    """Those of all numbers: of 64-bit code, then of 32-bit code."""
    return b"".join(
        shape(syscall_name(number, segment))
        for segment in (0, CODE_32_BIT)
        for number in range(NUMBERS)
    )
