"""Shared by all tests. `tests/unit` needs neither root nor BPF; `tests/system` needs both."""

import signal

from hypothesis import settings

from tests.system import sanitized

# A machine that is busy with other work may take any time for one example.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")
# A shell has what it runs in the background ignore these, and so would what the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
sanitized.spare_others()
