"""All system tests: one after the other those that are marked `alone`, and beside them the others.

    python -m tests.system [pytest's options]

What the others say is shown when all are done. Exit status 1 if any failed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile


def main() -> int:
    command = [sys.executable, "-m", "pytest", "-q", *sys.argv[1:], "tests/system"]
    with tempfile.TemporaryFile() as said:
        beside = subprocess.Popen(
            [*command, "-m", "not alone"], stdout=said, stderr=subprocess.STDOUT
        )
        try:
            status = subprocess.call([*command, "-m", "alone"])
        except BaseException:  # Ctrl-C
            beside.terminate()
            raise
        finally:
            beside.wait()
            said.seek(0)
            shutil.copyfileobj(said, sys.stdout.buffer)
    return 1 if status or beside.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
