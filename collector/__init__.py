"""Coreward: an eBPF-assisted crash collector that does not delay the restart of what died."""

__version__ = "0.1.0"
