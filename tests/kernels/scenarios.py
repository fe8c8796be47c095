"""Try what the product promises on the kernel that runs, and write down what came of it.

    python -m tests.kernels.scenarios --loader core bcc --handoff socket pipe none --out FILE.json

Needs root. Runs the same in a guest and on this machine, whose settings it borrows under the lock
that all tests share. FILE.json gets a list of cells, one for each feature that was tried; it is
written anew after each, so that it tells of a guest that dies. Exit status 1 if anything is not as
`features.py` expects it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import msgspec

from tests.kernels.deaths import ZOO
from tests.kernels.features import FEATURES, Cell, Here
from tests.kernels.run import Cannot, Finding, Runner, Scenario, cannot

SCOPES = ("agent", "live", "kernel")
_MARKS = {"works": "ok", "cannot": "no", "failed": "FAILED"}


def main() -> int:
    args = _arguments()
    log = _Log(args.out)
    runner = Runner(log.add, args.only)
    release = os.uname().release
    for loader in args.loader:
        if "agent" in args.scope:
            for handoff in args.handoff:
                _agent(runner, Here(release, loader, handoff))
        if "live" in args.scope:
            _live(runner, Here(release, loader, ""))
    if "kernel" in args.scope:
        _kernel(runner, Here(release, "", ""), log.cells)
    surprising = [cell for cell in log.cells if cell.surprising]
    print(f"{len(log.cells)} cells, {len(surprising)} not as expected")
    return 1 if surprising or not log.cells else 0


class _Log:
    """What was found, on disk and on standard output at once."""

    def __init__(self, out: Path | None) -> None:
        self.cells: list[Cell] = []
        self._out = out

    def add(self, cell: Cell) -> None:
        self.cells.append(cell)
        if self._out is not None:
            self._out.write_bytes(msgspec.json.format(msgspec.json.encode(self.cells)))
        where = " ".join(part for part in (cell.loader, cell.handoff) if part)
        mark = _MARKS[cell.state] + (f" (not {cell.expected})" if cell.surprising else "")
        detail = f": {cell.detail}" if cell.detail else ""
        title = FEATURES[cell.feature].title
        print(f"{cell.seconds:6.1f} s  {where:<12} {mark:<8} {title}{detail}", flush=True)


def _agent(runner: Runner, here: Here) -> None:
    """The agent with one loader and one hand-off."""
    from tests.kernels import watching  # noqa: PLC0415

    wanted = [name for name in ZOO if runner.wants([name])] or [*ZOO]
    chosen = [
        one
        for one in watching.scenarios.all
        if runner.wants(one.features)
        or (one.run is watching.zoo and runner.wants(watching.OF_THE_ZOO))
    ]
    if not chosen:
        return
    with tempfile.TemporaryDirectory(prefix="cs-") as name:
        folder = Path(name)
        try:
            with watching.watching(here, folder, wanted) as subject:
                for scenario in chosen:
                    runner.run(scenario, subject, here)
        except Exception as error:  # it is not ready, or does not end
            why = error

            def not_ready(_: None) -> list[Finding]:
                if isinstance(why, Cannot):
                    return [cannot("ready", str(why))]
                raise why

            runner.run(Scenario(("ready",), lambda _: iter(not_ready(None))), None, here)


def _live(runner: Runner, here: Here) -> None:
    """Verbs for live processes, with one loader."""
    from tests.kernels import living  # noqa: PLC0415

    chosen = [one for one in living.scenarios.all if runner.wants(one.features)]
    with tempfile.TemporaryDirectory(prefix="cs-") as name:
        for scenario in chosen:
            runner.run(scenario, living.Place(here, Path(name)), here)


def _kernel(runner: Runner, here: Here, cells: list[Cell]) -> None:
    """What is to be tried once; the doctor comes last, and is compared with all before it."""
    from tests.kernels import whole  # noqa: PLC0415

    for scenario in whole.scenarios.all:
        if runner.wants(scenario.features):
            runner.run(scenario, whole.Kernel(here, cells), here)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.kernels.scenarios", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--loader", nargs="+", default=["core"], choices=("core", "bcc", "none"))
    add("--handoff", nargs="+", default=["pipe"], choices=("socket", "pipe", "none"))
    add("--scope", nargs="+", default=["agent"], choices=SCOPES)
    add("--only", nargs="+", default=[], choices=sorted(FEATURES), metavar="FEATURE")
    add("--out", type=Path, metavar="FILE")
    args = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root")
    return args


if __name__ == "__main__":
    sys.exit(main())
