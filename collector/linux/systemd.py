"""What systemd says of a unit: systemctl(1) `show`, in a process that is left after a moment.

systemd itself may hang, or be what has just been killed; so nobody waits longer than TIMEOUT_S, and
no more is read than a unit's properties can be.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from collector.linux.programs import ask

TIMEOUT_S = 2.0
_MOST = 1 << 14  # bytes of an answer
_BOOTED = "/run/systemd/system"  # sd_booted(3)


def is_init() -> bool:
    """Whether systemd runs as the first process: sd_booted(3)."""
    return os.path.isdir(_BOOTED)  # noqa: PTH112


def job_of(unit: str, *, program: str = "systemctl", seconds: float = TIMEOUT_S) -> str | None:
    """What systemd is about to do with the unit: `start`, `stop`, `restart`, ...; None: nothing.

    CorewardError says why nobody knows.
    """
    arguments = ["list-jobs", "--no-pager", "--no-legend", "--plain", "--", unit]
    for line in _ask(program, arguments, seconds):
        words = line.split()  # number, unit, type, state
        if len(words) >= 3 and words[1] == unit:
            return words[2]
    return None


def show(
    unit: str, properties: Sequence[str], *, program: str = "systemctl", seconds: float = TIMEOUT_S
) -> dict[str, str]:
    """The properties that the unit has, as systemd writes them. CorewardError says why not.

    unit: its name as in its cgroup; of the system's manager.
    """
    arguments = ["show", "--no-pager", f"--property={','.join(properties)}", "--", unit]
    pairs = (line.partition("=") for line in _ask(program, arguments, seconds))
    return {name: value for name, found, value in pairs if found and name in properties}


def _ask(program: str, arguments: Sequence[str], seconds: float) -> list[str]:
    """The lines of its answer."""
    late = "systemd did not answer"
    answer = ask(program, arguments, seconds=seconds, most=_MOST, late=late)
    return answer.decode("utf-8", "backslashreplace").splitlines()
