"""Tests, in two lanes, so that a machine with two CPUs is busy with both until the end.

    python -m tests [FOLDER ...]

One lane has the system tests that are marked `alone`. The other one has those that are not, then
those of tests/unit, then the kernels in virtual machines. What a part says is shown when it is
over. FOLDER: those parts only. Exit status 1 if any failed, 2 if there is no such part.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain

LANES = (
    ("tests/system -m alone",),
    ("tests/system -m 'not alone'", "tests/unit", "tests/kernels"),
)
FOLDERS = sorted({part.split()[0] for lane in LANES for part in lane})


def run(lane: tuple[str, ...], over: threading.Event) -> list[str]:
    """One part after the other, until `over`; those that failed."""
    failed = []
    for part in lane:
        if over.is_set():
            break
        print(f"-- {part}: begun", flush=True)
        begun = time.monotonic()
        done = subprocess.run(
            f"{sys.executable} -m pytest -q {part}",
            shell=True,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if done.returncode:
            failed.append(part)
        head = f"\n== {part}: {time.monotonic() - begun:.0f} s\n"
        sys.stdout.buffer.write(head.encode() + done.stdout)
        sys.stdout.buffer.flush()
    return failed


def main(folders: list[str]) -> int:
    if unknown := set(folders) - set(FOLDERS):
        print(f"{min(unknown)}: none of {', '.join(FOLDERS)}", file=sys.stderr)
        return 2
    over = threading.Event()
    lanes = [
        tuple(part for part in lane if not folders or part.split()[0] in folders) for lane in LANES
    ]
    with ThreadPoolExecutor(len(lanes)) as pool:
        try:
            failed = list(chain(*pool.map(partial(run, over=over), lanes)))
        except KeyboardInterrupt:  # the parts have got it, too, and put back what they changed
            over.set()
            raise
    for part in failed:
        print("failed:", part)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
