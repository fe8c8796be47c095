"""The kernel's hand-off of a dying process, and the pin that keeps its memory when it is gone."""
