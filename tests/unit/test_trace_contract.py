"""bpf/trace.h and its reader in Python agree on every size, offset and constant."""

from __future__ import annotations

from pathlib import Path

import pytest

from collector.arch.call_sets import NUMBERS, wanted
from collector.arch.signatures import kinds, signature
from collector.trace import layout
from collector.trace.groups import GROUPS
from collector.trace.shapes import shape, shapes
from tests.unit.compiler import values_of

HEADER = Path(__file__).resolve().parents[2] / "bpf" / "trace.h"

# What the C compiler is asked -> what the reader believes.
EXPECTED = {
    "sizeof(struct cw_trace_rule)": layout.RULE.size,
    "offsetof(struct cw_trace_rule, wanted)": 16,
    "sizeof(struct cw_call_shape)": layout.SHAPE.size,
    "sizeof(struct cw_arming)": layout.ARMING.size,
    "sizeof(struct cw_trace_event)": layout.EVENT.size,
    "sizeof(struct cw_call)": layout.CALL.size,
    "sizeof(struct cw_trace_call)": layout.EVENT.size + layout.CALL.size,
    "sizeof(struct cw_trace_sent)": layout.EVENT.size + layout.SENT.size,
    "sizeof(struct cw_trace_signal)": layout.EVENT.size + layout.SIGNAL.size,
    "sizeof(struct cw_trace_fork)": layout.EVENT.size + layout.FORK.size,
    "sizeof(struct cw_trace_exec)": layout.EVENT.size + layout.EXEC.size,
    "sizeof(struct cw_trace_exit)": layout.EVENT.size + layout.EXIT.size,
    "sizeof(struct cw_kept_call)": layout.KEPT_CALL.size,
    "sizeof(struct cw_kept)": layout.KEPT_BYTES,
    "sizeof(struct cw_all_texts)": layout.KEPT_TEXTS_BYTES,
    "sizeof(struct cw_armed_thread)": layout.ARMED.size,
    "sizeof(struct cw_present)": layout.EVENT.size + layout.PRESENT.size,
    "sizeof(struct cw_untold)": layout.UNTOLD.size,
    "CW_CALL_NUMBERS": NUMBERS,
    "CW_CALL_TEXTS": layout.TEXTS,
    "CW_TEXT": layout.MAX_TEXT,
    "CW_KEPT_CALLS": layout.MAX_KEPT,
    "CW_KEPT_TEXT": layout.MAX_KEPT_TEXT,
    "CW_TRACE_RULES": layout.RULES,
    "CW_TRACE_LIVE": layout.LIVE,
    "CW_TRACE_RECORD": layout.RECORD,
    "CW_RULE_WAIT": layout.RULE_WAIT,
    "CW_RULE_TELL_FAILED": layout.RULE_TELL_FAILED,
    "CW_RULE_FOLLOW": layout.RULE_FOLLOW,
    "CW_LENGTH_RESULT": layout.LENGTH_RESULT,
    "CW_LENGTH_STRING": layout.LENGTH_STRING,
    "CW_LENGTH_FIXED": layout.LENGTH_FIXED,
    "CW_TRACED_CALL": layout.TYPE_CALL,
    "CW_TRACED_SENT": layout.TYPE_SENT,
    "CW_TRACED_SIGNAL": layout.TYPE_SIGNAL,
    "CW_TRACED_FORK": layout.TYPE_FORK,
    "CW_TRACED_EXEC": layout.TYPE_EXEC,
    "CW_TRACED_EXIT": layout.TYPE_EXIT,
    "CW_TRACED_KEPT": layout.TYPE_KEPT,
    "CW_TRACED_WAIT": layout.TYPE_WAIT,
    "CW_TRACED_TEXTS": layout.TYPE_TEXTS,
    "CW_ARMED_NOW": layout.ARMED_NOW,
    "CW_ARMED_OTHER": layout.ARMED_OTHER,
}


def test_sizes_and_constants_are_the_compilers(tmp_path: Path) -> None:
    assert values_of(EXPECTED, tmp_path, HEADER) == EXPECTED


def test_every_word_of_the_table_of_calls_is_known() -> None:
    own = {"d", "u", "l", "x", "p", "size", "mode", "path", "str", "in", "out", "ints", "status"}
    assert kinds() - own - set(GROUPS) == {"addr", "descriptor"}


def test_where_calls_have_their_texts() -> None:
    nothing = bytes(4)
    assert shape("read") == bytes([layout.TEXT_OUT, 1, layout.LENGTH_RESULT, 0]) + 2 * nothing
    assert shape("write") == bytes([layout.TEXT_IN, 1, 2, 0]) + 2 * nothing
    assert shape("renameat") == (
        bytes([layout.TEXT_IN, 1, layout.LENGTH_STRING, 0])
        + bytes([layout.TEXT_IN, 3, layout.LENGTH_STRING, 0])
        + nothing
    )
    assert shape("getpid") == shape(None) == 3 * nothing
    assert len(shapes()) == 2 * NUMBERS * layout.SHAPE.size
    assert signature("no such call").kinds == ("x",) * 6


def test_numbers_of_calls_are_in_plain_digits() -> None:
    assert wanted(["9" * 5000]) == wanted([str(NUMBERS)])
    with pytest.raises(ValueError, match="\u00b2"):
        wanted(["\u00b2"])
