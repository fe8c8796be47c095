"""The BPF side of a death: load or find the programs, read their events, list threads and mappings.

    with open_probe() as probe:
        poll(probe.fileno()); probe.drain()

The programs are pinned: they record while no agent runs, and the next opener drains what happened
meanwhile. Policy does not live here: what is worth keeping is the agent's matter.

Nothing is imported here: a writer needs `iterators` alone, and starts while a process waits for it.
"""
