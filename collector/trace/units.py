"""The processes of a systemd unit, by its control group."""

from __future__ import annotations

import os
from pathlib import Path

from collector.errors import UsageError

_ROOT = Path("/sys/fs/cgroup")
_SUFFIXES = (".service", ".scope", ".slice", ".socket", ".mount", ".swap", ".timer")


def unit_groups(unit: str, root: Path = _ROOT) -> list[Path]:
    """The folders of a unit's control group, with those below it. UsageError if there is none."""
    name = unit if unit.endswith(_SUFFIXES) else f"{unit}.service"
    if "/" in name or name.startswith("."):
        raise UsageError(f"--unit {unit}: a name such as nginx.service is expected")
    found = [Path(folder) for folder, _, _ in os.walk(root) if name in Path(folder).parts]
    if not found:
        raise UsageError(f"--unit {unit}: there is no control group {name} below {root}")
    return found


def unit_pids(groups: list[Path]) -> set[int]:
    """The processes that are in these groups now; a group that is gone has none."""
    found: set[int] = set()
    for group in groups:
        try:
            found.update(map(int, (group / "cgroup.procs").read_text().split()))
        except OSError:
            continue
    return found
