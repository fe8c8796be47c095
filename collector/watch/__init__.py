"""The flight recorder: samples of processes that policy watches, and what comes of them.

A process of its own, so that the agent stays small and a sample is taken on time. It keeps a ring
of samples for each watched process, gives them to the agent when that process dies, and has
snapshots taken when a health trigger fires.
"""
