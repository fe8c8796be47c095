"""Stacks and deaths for the tests of signatures."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from collector.model import Cause, Frame, Record
from collector.signature.compose import from_stack, signed
from collector.signature.rules import rules
from collector.signature.stack import stack_key
from collector.signature.types import SignatureRules
from tests.unit.store_samples import numbered

EXE = "/opt/shop/bin/shop"
LIBC = "/usr/lib/x86_64-linux-gnu/libc.so.6"
BUILD = "3f2a91bc" + "0" * 32


def frame(function: str | None, module: str = EXE, **facts: Any) -> Frame:
    return Frame(pc=0x401136, function=function, module=module, **facts)


def own(*functions: str) -> list[Frame]:
    return [frame(function, build_id=BUILD) for function in functions]


def libc(*functions: str | None) -> list[Frame]:
    return [frame(function, LIBC) for function in functions]


ENTRY = [*own("main"), *libc("__libc_start_call_main", "__libc_start_main_impl"), *own("_start")]
ABORT = libc("__pthread_kill_implementation", "raise", "abort")


def functions(*frames: Frame, more: SignatureRules | None = None) -> tuple[str, ...]:
    """The functions of the readable key."""
    key = stack_key(frames, rules(more or SignatureRules()))
    assert key is not None
    return key.frames


def death(number: int = 1, frames: list[Frame] | None = None, **facts: Any) -> Record:
    """A closed record with its signature: a null dereference, unless said otherwise."""
    base: dict[str, Any] = {
        "cause": Cause.SIGNAL,
        "exe": EXE,
        "signal": 11,
        "signal_name": "SIGSEGV",
        "si_code": 1,
        "si_addr": 8,
        "reason": "SIGSEGV",
        "frames": frames,
    }
    record = replace(numbered(number), **{**base, **facts})
    key = stack_key(record.frames or [], rules())
    return signed(replace(record, signature=from_stack(key)))
