"""Standard output that cannot be written any more."""

from __future__ import annotations

import os
import sys


def say_no_more() -> None:
    """What is printed from now on, or waits to be, goes nowhere, and is no error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
