"""`python -m tests.fuzz [SECONDS]`: run each target for so long (60); status 1 on a find."""

from __future__ import annotations

import sys

from tests.fuzz.targets import ROOT, TARGETS, build, coverage, fuzz

if __name__ == "__main__":
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    folder = ROOT / "build" / "fuzz"
    failed = []
    for target in TARGETS:
        print(f"{target}: {seconds} s", flush=True)
        found = fuzz(build(target, folder), target, folder, seconds)
        print(found.summary, flush=True)
        if found.ok:
            print(coverage(target, folder).summary, flush=True)
        else:
            print(found.output, file=sys.stderr)
            failed.append(target)
    sys.exit(1 if failed else 0)
