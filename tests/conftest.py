"""Shared by all tests. `tests/unit` needs neither root nor BPF; `tests/system` needs both."""

from hypothesis import settings

from tests.system import sanitized

# A machine that is busy with other work may take any time for one example.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")
sanitized.spare_others()
