"""/proc/self/oom_score_adj (proc(5)): whom the out-of-memory killer takes first, -1000 to 1000.

It is inherited: a child of a service that is to be spared is spared, too, unless it says otherwise.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

WORKER = 900  # rather than any service: what it does can be lost
RECORDER = 500  # rather than most: it holds what cannot be had again


def volunteer(score: int) -> None:
    """Be taken rather than others. It may always be raised; where there is no /proc, it is not."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(score))
