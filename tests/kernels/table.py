"""docs/kernels.md, made from what the runs found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from tests.kernels.features import AGENT, KERNEL, LIVE, Cell, Feature, State

HANDOFFS = ("socket", "pipe", "none")
LOADERS = ("core", "bcc")
_INTRODUCTION = """\
`make kernels` writes this page. It boots each kernel, tries each feature with both loaders of the
BPF programs, and compares what the agent and the verbs say with what is true.

- *yes*: it worked, and all that was said of it is right.
- *no*: it is not possible there; the footnote is the product's own reason.
- *-*: there is nothing to try.

Times are not judged: where KVM is missing, the processor is emulated."""
_MARKS = {State.WORKS: "yes", State.CANNOT: "no", State.FAILED: "**fails**"}
_UNTRIED = "-"


class SystemTests(msgspec.Struct, frozen=True, kw_only=True):
    """How tests/system went on a kernel."""

    passed: int
    failed: tuple[str, ...]
    skipped: dict[str, int]  # why -> how many


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """All that was found on one kernel."""

    name: str  # "6.1"
    release: str
    date: str  # ISO
    cells: list[Cell]
    tests: SystemTests | None = None


class _Footnotes:
    """Reasons, each written once and numbered in the order of the table."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def mark(self, reason: str) -> str:
        text = " ".join(reason.split())
        if text not in self.reasons:
            self.reasons.append(text)
        return f"[^{self.reasons.index(text) + 1}]"

    def lines(self) -> Iterator[str]:
        for number, reason in enumerate(self.reasons, 1):
            yield f"[^{number}]: {reason.replace('|', chr(92) + '|')}"


def write(path: Path, results: Sequence[Result]) -> None:
    """The document, of all kernels side by side, the oldest first."""
    path.write_text("\n".join(_lines(results)) + "\n")


def _lines(results: Sequence[Result]) -> Iterator[str]:
    notes = _Footnotes()
    yield "# What works on which kernel"
    yield ""
    yield from _INTRODUCTION.splitlines()
    yield ""
    yield "| kernel | release | tried on |"
    yield "|---|---|---|"
    for result in results:
        yield f"| {result.name} | {result.release} | {result.date} |"
    for handoff in HANDOFFS:
        yield from _section(
            f"The agent, hand-off by {handoff}" if handoff != "none" else "The agent, no hand-off",
            *(results, AGENT, handoff, LOADERS, notes),
        )
    yield from _section("Live processes", results, LIVE, "", LOADERS, notes)
    yield from _section("The whole", results, KERNEL, "", ("",), notes)
    yield from _tests(results)
    yield ""
    yield from notes.lines()


def _section(
    title: str,
    results: Sequence[Result],
    features: dict[str, Feature],
    handoff: str,
    loaders: Sequence[str],
    notes: _Footnotes,
) -> Iterator[str]:
    columns = [(result, loader) for result in results for loader in loaders]
    yield from ("", f"## {title}", "")
    heads = [f"{result.name} {loader}".strip() for result, loader in columns]
    yield f"| | {' | '.join(heads)} |"
    yield f"|---|{'---|' * len(columns)}"
    for name, feature in features.items():
        row = [_cell(result, name, loader, handoff, notes) for result, loader in columns]
        if set(row) != {_UNTRIED}:
            yield f"| {feature.title} | {' | '.join(row)} |"


def _cell(result: Result, feature: str, loader: str, handoff: str, notes: _Footnotes) -> str:
    wanted = (feature, loader, handoff)
    for cell in result.cells:
        if (cell.feature, cell.loader, cell.handoff) == wanted:
            return _MARKS[cell.state] + (notes.mark(cell.detail) if cell.detail else "")
    return _UNTRIED


def _tests(results: Sequence[Result]) -> Iterator[str]:
    tried = [(result, result.tests) for result in results if result.tests is not None]
    if not tried:
        return
    yield from ("", "## The system tests", "")
    yield "| kernel | passed | failed | skipped, and why |"
    yield "|---|---|---|---|"
    for result, tests in tried:
        skipped = "; ".join(f"{count}: {why}" for why, count in sorted(tests.skipped.items()))
        failed = ", ".join(tests.failed) or "none"
        yield f"| {result.name} | {tests.passed} | {failed} | {skipped or 'none'} |"
