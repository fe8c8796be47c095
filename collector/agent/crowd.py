"""crowd: an owner whose processes die faster than their cores can be written.

A process for which there is no pin waits until its memory is copied. In a crowd it would wait for
those before it, one after the other, for seconds. So beyond its owner's share it goes with a record
only, if what is before it takes longer than a process may wait (`hold.patience`). The native part
goes by the same rule, where it may release by itself (native/admit.c). Other owners have shares of
their own, and a handful of deaths is no crowd, however long each takes.
"""

from __future__ import annotations

from collector.agent.context import Context
from collector.linux.memory import LevelKey
from collector.native.contract import HANDFUL

REASON = "not kept: so many of its user's processes died that it would have waited for their cores"


def is_crowded(context: Context, owner: LevelKey | None) -> bool:
    """Whether a process of this owner that is held would only wait behind its like."""
    if owner is None:
        return False
    policy, lanes = context.policy.policy, context.lanes
    patience = policy.hold.patience
    open_ = context.pins.totals()
    share = max(HANDFUL, policy.release.max_pins // 2)
    if open_.by_level.get(owner, 0) >= share and open_.count * lanes.captures.each_s > patience:
        return True
    before = lanes.copies.waiting_of(owner)
    return before >= HANDFUL and lanes.copies.waiting * lanes.copies.each_s > patience
