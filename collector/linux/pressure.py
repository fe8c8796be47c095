"""How long tasks wait for memory: pressure stall information, PSI (Linux >= 4.20).

Documentation/accounting/psi.rst: `memory.pressure` of each cgroup of v2 but the root, and
/proc/pressure/memory of the host. The averages in it lag by seconds; `total` is exact whenever it
is read.
"""

from __future__ import annotations

import re

from collector.linux import procfs

HOST = "pressure/memory"  # below /proc
CGROUP = "memory.pressure"
_SOME = re.compile(rb"^some [^\n]*\btotal=([0-9]{1,20})$", re.MULTILINE)


def stalled_us(path: str) -> int | None:
    """Microseconds so far in which at least one task waited; None: the kernel does not tell.

    That is so without CONFIG_PSI, with `psi=0`, and where `cgroup.pressure` is off.
    """
    found = _SOME.search(procfs.read(path) or b"")
    return int(found[1]) if found else None
