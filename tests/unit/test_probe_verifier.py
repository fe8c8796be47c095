"""The logs of verifiers and compilers in a line; the samples are real, with most lines left out."""

from __future__ import annotations

import pytest

from collector.linux.verifier import MAX_LENGTH, explain

LIBBPF = """\
prog 'signal_deliver': BPF program load failed: Permission denied
prog 'signal_deliver': -- BEGIN PROG LOAD LOG --
0: R1=ctx() R10=fp0
; ON_EVENT(signal_deliver) @ coreward.bpf.c:336
0: (bf) r6 = r1                       ; R1=ctx() R6=ctx()
; if (sender->target_start_ns == who->start_ns && sender->signal == signal) @ coreward.bpf.c:120
808: (79) r2 = *(u64 *)(r0 +0)
R0 invalid mem access 'map_value_or_null'
processed 647 insns (limit 1000000) max_states_per_insn 0 total_states 41 peak_states 41
-- END PROG LOAD LOG --
prog 'signal_deliver': failed to load: -13
failed to load object 'bad'
"""

BCC = """\
bpf: Failed to load program: Permission denied
; struct cw_sender *sender = bpf_map_lookup_elem((void *)bpf_pseudo_fd(1, -5), &pid); @ main.c:609
603: (85) call bpf_map_lookup_elem#1          ; R0=map_value_or_null(id=567,map=senders)
;  @ main.c:0
604: (79) r1 = *(u64 *)(r0 +0)
R0 invalid mem access 'map_value_or_null'
processed 15435 insns (limit 1000000) max_states_per_insn 15 total_states 442 peak_states 159

HINT: The 'map_value_or_null' error can happen if you dereference a pointer value.

bcc could not load the programs: Failed to load BPF program b'raw_tracepoint__sched': Permission \
denied
"""

OLD_KERNEL = """\
prog 'a': BPF program load failed: Invalid argument
; return x;
0: (95) exit
R0 !read_ok
processed 1 insns (limit 1000000) max_states_per_insn 0
"""

COMPILER = """\
/virtual/main.c:706:1: error: expected ')'
{
^
/virtual/main.c:1003:1: error: field has incomplete type 'struct cw_scratch'
bcc could not load the programs: Failed to compile BPF module <text>
"""


@pytest.mark.parametrize(
    ("log", "line"),
    [
        (
            LIBBPF,
            "program `signal_deliver`: R0 invalid mem access 'map_value_or_null' at `if "
            "(sender->target_start_ns == who->start_ns && sender->signal == signal)` "
            "(coreward.bpf.c:120)",
        ),
        (
            BCC,
            "program `raw_tracepoint__sched`: R0 invalid mem access 'map_value_or_null' at `struct "
            "cw_sender *sender = bpf_map_lookup_elem((void *)bpf_pseudo_fd(1, -5), &pid);` "
            "(main.c:609)",
        ),
        (OLD_KERNEL, "program `a`: R0 !read_ok at `return x;`"),
        (COMPILER, "/virtual/main.c:706:1: error: expected ')'"),
        ("Traceback:\n  File\nMemoryError\n", "MemoryError"),
        ("", "no reason given"),
    ],
)
def test_what_is_wrong_in_one_line(log: str, line: str) -> None:
    assert explain(log) == line


def test_a_line_is_not_endless() -> None:
    assert len(explain("x" * 10_000)) == MAX_LENGTH
