"""Our Markdown as the source of a manual page (man(7)). Only what the documents use.

A table becomes a list: each row its first cell, and below it the others.
"""

from __future__ import annotations

import datetime
import os
import time

from markdown_it import MarkdownIt
from markdown_it.token import Token

_MARKS = {
    "strong_open": r"\fB",
    "strong_close": r"\fR",
    "em_open": r"\fI",
    "em_close": r"\fR",
    "softbreak": "\n",
}
_NO_PARAGRAPH = ("list_item_open", "heading_close")  # what comes next begins one anyway
_BULLET = r".IP \(bu 2"


def head(title: str, number: int, version: str) -> str:
    """The first line of a page. Its date is SOURCE_DATE_EPOCH's, where that is set."""
    seconds = int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))
    day = datetime.datetime.fromtimestamp(seconds, datetime.UTC).date()
    return f'.TH {title} {number} {day} "coreward {version}" "Coreward"'


def section(title: str, markdown: str) -> str:
    return f".SH {title}\n{of_markdown(markdown)}"


def of_markdown(markdown: str) -> str:
    """The lines below a heading. Headings of the second order are sections."""
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    lines: list[str] = []
    cells: list[str] = []
    for at, token in enumerate(tokens):
        match token.type:
            case "heading_open":
                request = ".SH" if token.tag in ("h1", "h2") else ".SS"
                lines.append(f"{request} {_heading(tokens[at + 1])}")
            case "paragraph_open" if at and tokens[at - 1].type not in _NO_PARAGRAPH:
                lines.append(".PP")
            case "list_item_open":
                lines.append(f".IP {token.info}. 4" if token.info else _BULLET)
            case "inline" if tokens[at - 1].type == "paragraph_open":
                lines.append(_lines(_inline(token)))
            case "fence" | "code_block":
                code = "\n".join(_line(_escaped(line)) for line in token.content.splitlines())
                lines.append(f"{'.PP' if at else '.'}\n.in +4n\n.nf\n{code}\n.fi\n.in")
            case "tr_open":
                cells = []
            case "inline" if tokens[at - 1].type == "td_open":
                cells.append(_inline(token))
            case "tr_close" if cells:
                first, *others = cells
                lines += [".TP", _line(first), _lines("\n.br\n".join(c for c in others if c))]
    return "\n".join(lines)


def _heading(token: Token) -> str:
    return _inline(token).replace(r"\fB", "").replace(r"\fR", "").upper()


def _inline(token: Token) -> str:
    """The text of a line with its marks; a link is what it is written on."""
    made = []
    for child in token.children or ():
        if child.type == "code_inline":
            made.append(rf"\fB{_escaped(child.content)}\fR")
        elif child.type == "text":
            made.append(_escaped(child.content))
        else:
            made.append(_MARKS.get(child.type, ""))
    return "".join(made)


def _lines(text: str) -> str:
    return "\n".join(line if line == ".br" else _line(line.strip()) for line in text.splitlines())


def _line(text: str) -> str:
    """A line that is no request, whatever it begins with."""
    return rf"\&{text}" if text[:1] in (".", "'") else text


def _escaped(text: str) -> str:
    return text.replace("\\", r"\e").replace("-", r"\-")
