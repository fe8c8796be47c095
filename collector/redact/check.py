"""`python -m collector.redact.check`: what is wrong with regular expressions. It has RE2, so that
the agent, which reads the policy, need not.

A list of texts in JSON on its standard input; on its output, for each, null or what is wrong.
"""

from __future__ import annotations

import sys

import msgspec

from collector.redact.rules import compiled


def main() -> None:
    regexes = msgspec.json.decode(sys.stdin.buffer.read(), type=list[str])
    sys.stdout.buffer.write(msgspec.json.encode([wrong(regex) for regex in regexes]))


def wrong(regex: str) -> str | None:
    """What is wrong with an expression; None: it can be a rule."""
    try:
        found = compiled(regex.encode()).search(b"")
    except ValueError as error:
        return f"{error}; expected one of RE2 such as '\\b[0-9]{{16}}\\b'"
    return None if found is None else "matches no bytes at all; it must have some"


if __name__ == "__main__":
    main()
