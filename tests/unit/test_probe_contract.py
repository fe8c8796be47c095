"""bpf/coreward.h and its readers in Python agree on every size, offset and constant."""

from __future__ import annotations

import re
from pathlib import Path

from collector.model import SentFlag
from collector.probe import armed, events, iterators, tallies
from collector.probe.probe import Counters
from tests.unit.compiler import values_of

HEADER = Path(__file__).resolve().parents[2] / "bpf" / "coreward.h"

# What the C compiler is asked -> what the readers believe.
EXPECTED = {
    "sizeof(struct cw_who)": events.WHO.size,
    "sizeof(struct cw_sender)": events.SENDER.size,
    "sizeof(struct cw_fault)": events.FAULT.size,
    "sizeof(struct cw_event)": events.EVENT_BYTES,
    "offsetof(struct cw_event, who)": events.HEAD.size,
    "sizeof(struct cw_exit)": events.SIZES[events.TYPE_EXIT],
    "sizeof(struct cw_fatal)": events.FATAL_BYTES,
    "sizeof(struct cw_signal)": events.SIZES[events.TYPE_SIGNAL],
    "offsetof(struct cw_fatal, stack)": events.SIGNAL_BYTES,
    "sizeof(struct cw_tally_key)": tallies.KEY.size,
    "sizeof(struct cw_tally)": tallies.TALLY_BYTES,
    "CW_TALLY_PIDS": tallies.PIDS,
    "offsetof(struct cw_who, comm)": 48,
    "sizeof(struct cw_mapped)": events.MAPPED.size,
    "sizeof(struct cw_oom)": events.SIZES[events.TYPE_OOM],
    "sizeof(struct cw_oom_level)": events.OOM_LEVEL.size,
    "offsetof(struct cw_oom, levels)": events.EVENT_BYTES + events.OOM.size,
    "CW_OOM_LEVELS": events.OOM_LEVELS,
    "sizeof(struct cw_killer)": events.KILLER_BYTES,
    "offsetof(struct cw_killer, who)": events.KILLER.size,
    "offsetof(struct cw_killer, args_len)": events.KILLER.size + events.WHO.size,
    "CW_TOLD_INFO": events.TOLD_INFO,
    "CW_TOLD_CORE_BYTE": events.TOLD_CORE_BYTE,
    "CW_SENT_BARE": SentFlag.BARE,
    "CW_SENT_BY_KERNEL": SentFlag.BY_KERNEL,
    "CW_SENT_LEAVING": SentFlag.LEAVING,
    "CW_SENT_TO_SELF": SentFlag.TO_SELF,
    "CW_SENT_REAPER": SentFlag.REAPER,
    "CW_SENT_TRACER": SentFlag.TRACER,
    "CW_SENT_CPU_LIMIT": SentFlag.CPU_LIMIT,
    "CW_SENT_RT_LIMIT": SentFlag.RT_LIMIT,
    "CW_SENT_PARENT": SentFlag.PARENT,
    "sizeof(struct cw_thread)": iterators.THREAD.size,
    "offsetof(struct cw_thread, regs)": iterators.THREAD.size - 8 * (27 + 2),
    "sizeof(struct cw_mapping)": iterators.MAPPING.size,
    "CW_FORMAT": events.FORMAT,
    "CW_PAGE": events.PAGE,
    "CW_STACK_PAGES": events.STACK_PAGES,
    "CW_EVENT_FATAL": events.TYPE_FATAL,
    "CW_EVENT_EXIT": events.TYPE_EXIT,
    "CW_EVENT_OOM": events.TYPE_OOM,
    "CW_EVENT_MAPPED": events.TYPE_MAPPED,
    "CW_EVENT_SIGNAL": events.TYPE_SIGNAL,
    "CW_EVENT_KILLER": events.TYPE_KILLER,
    "CW_MAPPING_FILE": iterators.HAS_FILE,
    "CW_MAPPING_ANON_VMA": iterators.HAS_ANON_VMA,
    "CW_MAPPING_SPECIAL": iterators.IS_SPECIAL,
    "CW_MAPPING_PATH_WALK": iterators.IS_WALK,
    "CW_MAPPING_DELETED": iterators.IS_DELETED,
    "CW_MAPPING_SAME": iterators.IS_SAME,
    "CW_MAPPING_UNNAMED": iterators.IS_UNNAMED,
    "CW_PATHS_MAX": iterators.PATHS_MAX,
    "sizeof(struct cw_armed_event)": armed.EVENT.size,
    "offsetof(struct cw_armed_thread, words)": armed.EVENT.size + armed.TOLD.size,
    "sizeof(struct cw_armed_thread) - sizeof(struct cw_thread)": (
        armed.EVENT.size + armed.TOLD.size + armed.WORDS * armed.WORD.size
    ),
    "sizeof(struct cw_armed_word)": armed.WORD.size,
    "offsetof(struct cw_thread, regs) + 0": 128,
    "sizeof(struct cw_armed)": armed.ARMED.size,
    "sizeof(struct cw_armed_walk)": armed.WALK.size,
    "CW_ARMED_THREAD": armed.TYPE_THREAD,
    "CW_ARMED_EXEC": armed.TYPE_EXEC,
    "CW_ARMED_FORK": armed.TYPE_FORK,
    "CW_ARMED_EXIT": armed.TELL_EXIT,
    "CW_ARMED_CHILDREN": armed.FOLLOW_CHILDREN,
    "CW_ARMED_NO_XSTATE": armed.NO_XSTATE,
    "CW_ARMED_MORE_WORDS": armed.MORE_WORDS,
    "CW_ARMING": armed.ARMING,
    "CW_LOAD_FPU": armed.LOAD_FPU,
    "CW_COUNTERS": len(Counters.__struct_fields__) - 2,
}


def test_sizes_and_constants_are_the_compilers(tmp_path: Path) -> None:
    assert values_of(EXPECTED, tmp_path, HEADER) == EXPECTED


def test_counters_are_in_the_order_of_the_header() -> None:
    body = re.search(r"enum cw_counter \{(.*?)\}", HEADER.read_text(), re.S)
    assert body is not None
    names = [name.removeprefix("CW_").lower() for name in re.findall(r"CW_\w+", body[1])]
    assert (*names[:-1], "undecodable", "overwritten") == Counters.__struct_fields__
