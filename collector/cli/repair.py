"""What `coreward doctor --repair` does: the index anew from the folders, and what was found."""

from __future__ import annotations

from pathlib import Path

from collector.cli import render
from collector.errors import CorewardError
from collector.handoff.settings import SettingsGuard
from collector.store.store import Repair, Store


def repair(path: Path, run_dir: Path, *, json: bool) -> int:
    """Exit status 1: there is something that only people can put right."""
    with Store(path, create=False) as store:
        found = store.repair(alone=_no_agent(run_dir))
    if json:
        render.print_json(found)
    else:
        for line in _told(found):
            print(render.clean(line))
    return 1 if found.damaged else 0


def _no_agent(run_dir: Path) -> bool:
    """Whether no agent is at work there, who would go on with an index that was set aside."""
    guard = SettingsGuard(run_dir)
    try:
        guard.lock()
    except CorewardError:
        return False
    guard.unlock()
    return True


def _told(found: Repair) -> list[str]:
    lines = [f"{found.records:,} records are in the index"]
    if found.replaced:
        lines.append("the index was damaged or missing: it is a new one, the old one is set aside")
    if found.rows_removed:
        lines.append(f"{found.rows_removed:,} of its rows had no record any more: removed")
    lines += [f"damaged: {one}" for one in found.damaged]
    if found.damaged:
        lines.append("`coreward rm ID` removes what is damaged; nothing was removed")
    if found.unfinished:
        lines.append(
            f"{found.unfinished:,} files or folders are unfinished: in the making, or left by a "
            "writer that was killed; the agent removes such when it starts"
        )
    return lines
