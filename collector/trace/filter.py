"""strace's `-e trace=SET`. Pure."""

from __future__ import annotations

from collector.arch.call_sets import EVERYTHING, Wanted, wanted
from collector.errors import UsageError

__all__ = ["EVERYTHING", "Wanted", "parse"]


def parse(expression: str) -> Wanted:
    """`openat,close`, `%file`, `!futex`, `/regex`, `all`, `none`; a number for one without a name.

    `trace=` may stand before it. UsageError names what is no call and no set.
    """
    text = expression.removeprefix("trace=").removeprefix("t=")
    if "=" in text.split("/", 1)[0]:
        kind = text.partition("=")[0]
        raise UsageError(f"-e {expression}: only trace= is known here, not {kind}=")
    try:
        return wanted(text.removeprefix("!").split(","), but=text.startswith("!"))
    except ValueError as error:
        raise UsageError(f"-e {expression}: {error}") from error
