"""`python -m collector.trace.headers FILE`: the constants of the kernel's headers, as JSON.

A build step for machines with a C compiler and the kernel's user headers (linux-libc-dev). The
preprocessor lists what the headers define, the compiler says what each name is worth; so nothing
here is copied by hand but the names of the groups. What older headers lack is shown as a number.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from collector.errors import CorewardError, ProbeError
from collector.trace.groups import GROUPS, LIMITS, Group


def collect() -> dict[str, dict[str, int]]:
    """Group -> name -> value. ProbeError if there is no compiler, or no headers."""
    return {name: _values(group) for name, group in GROUPS.items()}


def _values(group: Group) -> dict[str, int]:
    lines = "".join(f"#include <{header}>\n" for header in group.headers.split())
    source = f"#define _GNU_SOURCE\n{lines}"
    defined = re.findall(r"^#define (\w+)[ \t]+\S", _compile(["-E", "-dM"], source), re.MULTILINE)
    names = sorted(
        name
        for name in set(defined)
        if re.fullmatch(group.names, name) and not re.fullmatch(group.without, name)
    )
    if group.flags:
        names = [name for name in names if not re.fullmatch(LIMITS, name)]
    if not names:
        return {}
    # one array, so that values alone are in the assembler's text, in the order of the names
    body = "".join(f"(long long)({name}),\n" for name in names)
    text = f"{source}const long long cw_values[] = {{\n1,\n{body}1\n}};\n"
    assembled = _compile(["-S", "-o", "-"], text)
    values: list[int] = []
    for kind, number in re.findall(r"^\s+\.(quad|zero)\s+(-?\d+)", assembled, re.MULTILINE):
        values += [int(number)] if kind == "quad" else [0] * (int(number) // 8)
    return dict(zip(names, values[1:-1], strict=True))


def _compile(options: list[str], source: str) -> str:
    command = ["gcc", "-x", "c", *options, "-"]
    try:
        done = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise ProbeError("gcc is missing: install the packages gcc and linux-libc-dev") from error
    if done.returncode:
        raise ProbeError(f"{' '.join(command)} failed:\n{done.stderr.strip()}")
    return done.stdout


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m collector.trace.headers FILE", file=sys.stderr)
        return 2
    try:
        text = json.dumps(collect(), indent=1, sort_keys=True)
    except CorewardError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    partial = Path(f"{arguments[0]}.partial")
    partial.write_text(text + "\n")
    partial.replace(arguments[0])
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
