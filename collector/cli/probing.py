"""The BPF programs that look at what lives, for the verbs that can do without."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from collector.cli.render import clean
from collector.errors import ProbeError
from collector.probe.live import LiveProbe, open_live


@contextlib.contextmanager
def live_probe() -> Iterator[LiveProbe | None]:
    """The BPF programs, where they can be used (by root); without, threads are held in turn."""
    if os.geteuid() != 0:
        yield None
        return
    try:
        live = open_live()
    except ProbeError as error:
        print(f"coreward: without BPF: {clean(error)}", file=sys.stderr)
        yield None
        return
    with live:
        yield live
