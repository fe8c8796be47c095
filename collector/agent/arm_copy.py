"""The memory of an armed process that must be given up soon: what is copied of it, and how."""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec

from collector.agent.armed import Armed
from collector.agent.context import Context
from collector.agent.crash import Crash
from collector.capture.copier import make_copy
from collector.capture.outline import armed_outline
from collector.capture.parts import Copy, Source
from collector.errors import CorewardError


def copy_hastily(context: Context, crash: Crash, one: Armed, sps: Sequence[int]) -> Copy | str:
    """Copy the stacks, then the rest, as far as the rule's `within` goes; its pin goes then.

    sps: stack pointers of its threads, those of the dying one first. str: why there is no copy.
    """
    gathered, policy = crash.gathered, context.policy.policy
    dying, action = gathered.dying, crash.decided.decision.action
    most = [limit for limit in (action.memory.max, policy.capture.max_read) if limit is not None]
    try:
        parts = armed_outline(
            dying, gathered.mappings, sps, action.memory, crash.decided.admission.capture
        )
        # its pid may be another's by now
        source = Source(one.key.pid, -1, dying.mem_fd, dying.pagemap_fd)
        wanted = min([gathered.size + (gathered.resident or 0), *most])
        with context.copies.room(wanted, policy.release.copy) as room:
            copy = make_copy(
                parts, source, min([room, *most]), one.rule.within, copied=one.pin.release
            )
    except (CorewardError, OSError) as error:
        return f"it could not be copied: {error}"
    finally:
        one.pin.release()
    gathered.open.callback(os.close, copy.fd)
    return msgspec.structs.replace(copy, hasty=True)
