"""A record as bytes, and back. Not the storing: where the bytes go is `folders`' business.

The JSON is plain UTF-8 that every parser accepts and that is safe to print: what a terminal
would obey instead of showing (controls, C1, bidi overrides, invisible characters) is written as
a \\u escape. A name that is not UTF-8 comes from os.fsdecode with lone surrogates, which JSON
cannot carry: its bytes are written as the four characters \\xNN.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import msgspec

from collector.model import Record

# Characters that a terminal obeys or hides instead of showing them.
_HOSTILE = (
    "[\x00-\x1f\x7f-\x9f"  # C0, DEL, C1
    "\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000"  # blanks that are no space
    "\u00ad\u034f\u061c"  # soft hyphen, grapheme joiner, Arabic letter mark
    "\u115f\u1160\u3164\uffa0\u17b4\u17b5"  # fillers of Hangul, Khmer vowels: letters of no width
    "\u180b-\u180f\ufe00-\ufe0f"  # Mongolian and other variation selectors
    "\u200b-\u200f\u2028-\u202e\u2060-\u206f"  # zero width, line separators, bidi
    "\u2800"  # Braille without a dot
    "\ud800-\udfff\ufeff\ufff0-\uffff\ufdd0-\ufdef"  # surrogates, byte order mark, none at all
    "\ue000-\uf8ff\U000f0000-\U0010ffff"  # of private use: nobody knows what they look like
    "\U00013430-\U00013440\U00016fe4"  # of hieroglyphs and of Khitan, without a shape of their own
    "\U0001bca0-\U0001bca3\U0001d159\U0001d173-\U0001d17a"  # of shorthand, and of music
    "\U000e0000-\U000e0fff]"  # tags, variation selectors
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_DECODER = msgspec.json.Decoder(Record)


def utf8_only(record: Record) -> Record:
    """The record with every byte that was not UTF-8 spelled out as \\xNN."""
    try:
        msgspec.json.encode(record)
    except UnicodeEncodeError:
        return msgspec.convert(_spelled(msgspec.to_builtins(record)), Record)
    return record


def encode(record: Record) -> bytes:
    """The contents of `record.json`. The record must be `utf8_only`."""
    return json_text(record).encode()


def decode(data: bytes) -> Record:
    """A record from the contents of `record.json`; msgspec.DecodeError if it is none."""
    return _DECODER.decode(data)


def json_text(value: object) -> str:
    """Any value of msgspec's types as indented JSON that is safe to print; ends in a newline."""
    try:
        data = msgspec.json.encode(value)
    except UnicodeEncodeError:
        data = msgspec.json.encode(_spelled(msgspec.to_builtins(value)))
    text = msgspec.json.format(data, indent=2).decode()
    # Strings hold no raw newline any more, so those left are the layout's.
    if not _is_plain(text.replace("\n", "")):
        text = _hostile_but_newline().sub(_json_escape, text)
    return text + "\n"


def json_line(value: object) -> str:
    """The same in one line, for a stream of values."""
    try:
        data = msgspec.json.encode(value)
    except UnicodeEncodeError:
        data = msgspec.json.encode(_spelled(msgspec.to_builtins(value)))
    text = data.decode()
    return (text if _is_plain(text) else _hostile().sub(_json_escape, text)) + "\n"


def spelled(text: str) -> str:
    """The text with each hostile character as visible text."""
    return text if _is_plain(text) else _hostile().sub(spell, text)


def _is_plain(text: str) -> bool:
    """Printable ASCII, as nearly all is: then the expressions, which take 10 ms to compile, are not
    needed."""
    return text.isascii() and text.isprintable()


@functools.cache
def _hostile() -> re.Pattern[str]:
    return re.compile(_HOSTILE)


@functools.cache
def _hostile_but_newline() -> re.Pattern[str]:
    return re.compile(_HOSTILE.replace("\x00-\x1f", "\x00-\x09\x0b-\x1f"))


def _json_escape(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))


def _spelled(value: Any) -> Any:
    match value:
        case str():
            return _SURROGATE.sub(spell, value)
        case list() | tuple():
            return [_spelled(item) for item in value]
        case dict():
            return {_spelled(key): _spelled(item) for key, item in value.items()}
    return value


def spell(match: re.Match[str]) -> str:
    """A hostile character as visible text: \\n, \\x1b, \\u202e; an undecodable byte as \\xNN."""
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # what os.fsdecode makes of one byte
        return f"\\x{code - 0xDC00:02x}"
    if match[0] in _SHORT:
        return _SHORT[match[0]]
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


_SHORT = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
