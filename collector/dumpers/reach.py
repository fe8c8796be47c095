"""Match conditions as rows for the native part: which processes stay held until bids are in.

The native part compares numbers and patterns in which only `*` is special. A row may say yes where
`policy.match` says no, which costs a process the moment until Python has looked; it must never say
no where that says yes. So what a row cannot express is left out of it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence

from collector.native.contract import BIDDER_COMM, BIDDER_PATH, BIDDER_UIDS, Bidder
from collector.policy.types import Match

MAX_ROWS = 8  # of one dumper; where alternatives make more, one row leaves their texts out
_ANY_SIGNAL = (1 << 64) - 1
_ANY = (b"",)


def rows_of(match: Match) -> list[Bidder]:
    """At least one row: together they hold for all processes that `match` holds for."""
    uids = match.uid or ()
    if len(uids) > BIDDER_UIDS:
        uids = ()
    signals = _ANY_SIGNAL
    if match.signal is not None:
        signals = sum(1 << number - 1 for number in set(match.signal))
    texts = [
        _patterns(match.comm, BIDDER_COMM),
        _patterns(match.exe, BIDDER_PATH, behind="*"),  # the kernel may add " (deleted)"
        _cgroups(match),
    ]
    if len(texts[0]) * len(texts[1]) * len(texts[2]) > MAX_ROWS:
        texts = [_ANY, _ANY, _ANY]
    return [
        Bidder(signals, len(uids), (*uids, *[0] * (BIDDER_UIDS - len(uids))), comm, exe, cgroup)
        for comm, exe, cgroup in itertools.product(*texts)
    ]


def _cgroups(match: Match) -> Sequence[bytes]:
    """Of /proc/PID/cgroup as a whole: the path of a cgroup is in it, and in that its unit."""
    if match.cgroup is not None:
        return _patterns(match.cgroup, BIDDER_PATH, before="*", behind="*")
    # a unit of a user's own manager is written below that: the parts stand further apart
    units = None if match.unit is None else [unit.rpartition("/")[2] for unit in match.unit]
    return _patterns(units, BIDDER_PATH, before="*", behind="*")


def _patterns(
    globs: Iterable[str] | None, size: int, *, before: str = "", behind: str = ""
) -> Sequence[bytes]:
    if globs is None:
        return _ANY
    found = []
    for glob in globs:
        pattern = os.fsencode(before + _stars_only(glob) + behind)
        if len(pattern) >= size or not pattern.isascii() or b"\\" in pattern or b"\n" in pattern:
            return _ANY  # what is escaped in /proc is not looked for
        found.append(pattern)
    return found


def _stars_only(glob: str) -> str:
    """A pattern that holds wherever the glob does."""
    plain, bracket, _ = glob.partition("[")
    return plain.replace("?", "*") + ("*" if bracket else "")
