"""What verbs print: cleaned text, sizes, times, tables, frames. Gathers nothing.

Every name from a crashing process passes `clean` on its way to a terminal or a pipe: it can then
neither start a new line nor be obeyed by the terminal. JSON is escaped by `print_json` instead.
"""

from __future__ import annotations

import datetime
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence

from collector.cli.output import terminal
from collector.errors import StoreError
from collector.model import Frame, Outcome, Record
from collector.store.encoding import json_text, spelled

GAP = "  "
_RED, _DIM, _BOLD, _PLAIN = "\x1b[31m", "\x1b[2m", "\x1b[1m", "\x1b[0m"
_AGES = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
_OLD = datetime.timedelta(days=30)  # of which a date says more than an age
_AHEAD = datetime.timedelta(minutes=1)  # more is no death that came while we looked
_UNITS = ("KiB", "MiB", "GiB", "TiB")


def clean(text: object) -> str:
    """The text with everything that a terminal would obey, or hide, spelled out: \\n, \\x1b."""
    return spelled(str(text))


def print_json(value: object) -> None:
    """Print a value of msgspec's types as JSON: an array for what lists, else an object."""
    print(json_text(value), end="")


def print_json_array(values: Iterable[object]) -> None:
    """The same of many values, of which one at a time is in memory."""
    opened = False
    for value in values:
        print(
            ",\n" if opened else "[\n", textwrap.indent(json_text(value)[:-1], "  "), sep="", end=""
        )
        opened = True
    print("\n]" if opened else "[]")


def print_lost(damage: Iterable[StoreError]) -> None:
    """Say on stderr what could not be shown."""
    for error in damage:
        print(f"coreward: lost: {clean(error.told())}", file=sys.stderr)


def size(count: int | None) -> str:
    """Bytes for people: `512 B`, `2.3 MiB`; `-` for None."""
    if count is None:
        return "-"
    if count < 1024:
        return f"{count} B"
    value = float(count)
    for unit in _UNITS:
        value /= 1024
        if value < 1023.95 or unit == _UNITS[-1]:
            break
    return f"{value:.1f} {unit}"


def local_time(time: datetime.datetime, *, exact: bool = False) -> str:
    """Local time to the second; `exact`: to the millisecond, with the zone."""
    local = time.astimezone()
    text = local.strftime("%Y-%m-%d %H:%M:%S")
    return f"{text}.{local.microsecond // 1000:03} {local.strftime('%Z')}" if exact else text


def age(time: datetime.datetime, now: datetime.datetime) -> str:
    """How long ago that was, in one unit, rounded down: `12 s ago`, `3 min ago`, `5 h ago`."""
    seconds = max((now - time) / datetime.timedelta(seconds=1), 0)
    name, length = next((unit for unit in _AGES if seconds >= unit[1]), _AGES[-1])
    return f"{int(seconds / length)} {name} ago"


def process(record: Record) -> str:
    """The process's name: its executable, with comm where that says something else."""
    if record.exe is None:
        return clean(record.comm)
    own_name = record.exe.rsplit("/", 1)[-1]
    if record.comm and not own_name.startswith(record.comm):
        return clean(f"{record.comm} ({record.exe})")
    return clean(record.exe)


def captured(record: Record) -> str:
    """What is kept of the process, and what became of the attempt where that is worth a word."""
    if record.outcome in (Outcome.COMPLETE, Outcome.RECORDED):
        return record.capture.value
    return f"{record.capture.value}, {record.outcome.value}"


def frame_lines(frames: Sequence[Frame], screen: Screen | None = None) -> list[str]:
    """One line for each frame, innermost first:
    `#0  0x000055d0c0de1234 in inner+0x12 (victim.c:10) [/usr/bin/victim]`.

    A frame without a name has its address in its file: `in ?? [/usr/bin/victim+0x1234]`. On a
    screen functions stand out, and addresses stand back.
    """
    digits = len(str(max(len(frames) - 1, 0))) + 1  # with the number sign
    return [
        _frame_line(f"#{number}".ljust(digits), frame, screen)
        for number, frame in enumerate(frames)
    ]


def _frame_line(number: str, frame: Frame, screen: Screen | None) -> str:
    address = f"{number}  {frame.pc:#018x}"
    name = clean(frame.function or "??")
    where = ""
    if frame.function and frame.offset is not None:
        where += f"+{frame.offset:#x}"
    if frame.file:
        where += f" ({frame.file}:{frame.line})" if frame.line else f" ({frame.file})"
    if frame.module:
        nameless = frame.function is None and frame.module_offset is not None
        where += f" [{frame.module}+{frame.module_offset:#x}]" if nameless else f" [{frame.module}]"
    if frame.inline:
        where += " (inlined)"
    if frame.language:
        where += f" ({frame.language.capitalize()})"
    if frame.scanned:
        where += " (found on the stack)"
    if screen is not None:
        address, name = screen.dim(address), screen.bold(name)
    return f"{address} in {name}{clean(where)}"


def nameless_lines(frames: Iterable[Frame]) -> list[str]:
    """A line for each object of frames without a name: `/usr/bin/victim: build-id 1234abcd`.

    With the build-id and the addresses in the frames' lines they get their names elsewhere.
    """
    found = {f.module: f.build_id for f in frames if f.function is None and f.module and f.build_id}
    return [clean(f"{module}: build-id {build_id}") for module, build_id in sorted(found.items())]


class Screen:
    """Where the output goes: how wide it is, and whether it understands colours.

    A pipe has no width (nothing is cut), no colours, and times as they are. A terminal shows times
    by how long ago they were, which is what somebody wants to know who was called.
    """

    def __init__(self) -> None:
        shown = terminal()
        self.width = None if shown is None else shown.width
        self.now = datetime.datetime.now(datetime.UTC) if shown is not None else None
        self._colours = shown is not None and shown.colours

    def when(self, time: datetime.datetime) -> str:
        """A time in a table: its age, for a month; in a pipe, and of the future, local time."""
        if self.now is None or not -_AHEAD <= self.now - time <= _OLD:
            return local_time(time)
        return age(time, self.now)

    def moment(self, time: datetime.datetime, *, exact: bool = False) -> str:
        """A time that somebody will look for elsewhere: on a terminal with its age."""
        told = local_time(time, exact=exact)
        if self.now is None or time - self.now > _AHEAD:
            return told
        return f"{told} ({age(time, self.now)})"

    def red(self, text: str) -> str:
        return self._in(_RED, text)

    def dim(self, text: str) -> str:
        return self._in(_DIM, text)

    def bold(self, text: str) -> str:
        return self._in(_BOLD, text)

    def _in(self, colour: str, text: str) -> str:
        return f"{colour}{text}{_PLAIN}" if self._colours and text else text


def cells(text: str) -> int:
    """How many columns of a terminal the text takes."""
    if text.isascii():
        return len(text)
    return sum(map(_char_cells, text))


def cut(text: str, width: int) -> str:
    """The text, shortened to at most `width` columns (>= 1) with an ellipsis."""
    if cells(text) <= width:
        return text
    taken, used = "", 1  # the ellipsis
    for char in text:
        used += _char_cells(char)
        if used > width:
            break
        taken += char
    return taken + "…"


def columns(rows: Sequence[Sequence[str]], right: Iterable[int] = ()) -> list[list[str]]:
    """The rows with each cell padded to its column's width, the last column excepted.

    `right`: numbers of the columns that are aligned to the right.
    """
    widths = [max(map(cells, column)) for column in zip(*rows, strict=True)]
    to_right = set(right)
    padded = []
    for row in rows:
        fill = [" " * (width - cells(text)) for text, width in zip(row, widths, strict=True)]
        if len(row) - 1 not in to_right:
            fill[-1] = ""  # no spaces at the end of a line
        padded.append(
            [
                space + text if number in to_right else text + space
                for number, (text, space) in enumerate(zip(row, fill, strict=True))
            ]
        )
    return padded


def _char_cells(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
