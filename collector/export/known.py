"""Label sets of deaths that are known before any process has died.

Causes, outcomes and the names of the signals that are common with a cause make about 170 of them.
Rare signals are counted as `other`: a metric is no record, which has the exact one.
"""

from __future__ import annotations

from collections.abc import Iterator

from collector.export.counts import OTHER
from collector.model import Cause, Outcome
from collector.signals import CORE_SIGNALS, signal_name

NO_SIGNAL = "none"
CAUSES = tuple(one.value for one in Cause if one is not Cause.SNAPSHOT)  # a snapshot is no death
# `pending` and `removed` are no ends of a capture
OUTCOMES = tuple(one.value for one in Outcome if one not in {Outcome.PENDING, Outcome.REMOVED})
_WITH_CORE = tuple(str(signal_name(number)) for number in sorted(CORE_SIGNALS))
_RAISED = ("SIGPIPE", "SIGTERM", OTHER)  # by the process or for it; the kernel keeps no core then
_SENT = ("SIGABRT", "SIGHUP", "SIGINT", "SIGKILL", "SIGQUIT", "SIGSEGV", "SIGTERM", OTHER)
_SIGNALS = {
    Cause.SIGNAL: (*_WITH_CORE, *_RAISED),
    Cause.KILLED: _SENT,
    Cause.OOM: ("SIGKILL", OTHER),
    Cause.EXIT: (NO_SIGNAL,),
}
# of the policy's `store`, by which retention removes
LIMITS = (
    *("max_size", "max_records", "max_age", "max_core_age", "keep_free"),
    *("service_max_size", "service_max_records"),
)
_WITHOUT_CORE = (Outcome.RECORDED.value, Outcome.IGNORED.value, Outcome.COUNTED.value)


def signal_label(cause: Cause, number: int | None) -> str:
    """The label's value for the signal of a death; None: there was none."""
    name = signal_name(number) or NO_SIGNAL
    return name if name in (*_SIGNALS.get(cause, ()), NO_SIGNAL) else OTHER


def death_labels() -> Iterator[tuple[str, str, str]]:
    """(cause, signal, outcome) of all deaths that are to be expected."""
    for cause, names in _SIGNALS.items():
        for name in names:
            without = cause is Cause.SIGNAL and name in _RAISED
            for outcome in _WITHOUT_CORE if without else OUTCOMES:
                yield cause.value, name, outcome


def unit_label(unit: str | None) -> str:
    """The label's value for the unit of a dead process.

    Names of services are root's, and so are those of users' managers. What a user names, as the
    units of his own manager, is no value; nor are scopes, of which each login and container has a
    new one.
    """
    first = (unit or "").partition("/")[0]
    return first if first.endswith(".service") else OTHER
