"""The BPF side of a death: load or find the programs, read their events, list threads and mappings.

    with open_probe() as probe:
        poll(probe.fileno()); probe.drain()

The programs are pinned: they record while no agent runs, and the next opener drains what happened
meanwhile. Policy does not live here: what is worth keeping is the agent's matter.
"""

from __future__ import annotations

from collector.probe.iterators import decode_mappings, decode_threads
from collector.probe.probe import PIN_DIR, Counters, Probe, open_probe

__all__ = [
    "PIN_DIR",
    "Counters",
    "Probe",
    "decode_mappings",
    "decode_threads",
    "open_probe",
]
