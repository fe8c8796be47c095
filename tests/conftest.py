"""Shared by all tests. `tests/unit` needs neither root nor BPF; `tests/system` needs both."""
