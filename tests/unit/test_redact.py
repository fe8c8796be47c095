"""What a policy redacts: of texts, of memory piece by piece, of notes, of a record."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest

from collector.arch.x86_64 import PAGE
from collector.capture.process import ProcText
from collector.capture.redacted import RedactedMemory, Redactor
from collector.circumstances import LogLine, ManagedRuntime, Pod, PodSource
from collector.cli import redaction
from collector.cli.redaction import redaction_by
from collector.diagnosis import Diagnosis, Evidence
from collector.elfcore.types import CorewardNote, Mapping, ProcessImage, Prot, PsInfo, Thread
from collector.errors import CaptureError
from collector.model import KilledBy, Killer, OomFacts, OomTask, Record, Relative, Sender
from collector.policy.load import PolicyErrors, loads
from collector.ranges import Range
from collector.redact import ask
from collector.redact import rules as rules_module
from collector.redact.__main__ import answer
from collector.redact.ask import Question, redacted
from collector.redact.record import HIDDEN, concealed, withheld
from collector.redact.rules import OutOfTime, Rules, compiled
from collector.redact.types import REACH, Pattern, Redact
from collector.redact.words import argument_spans, environment_spans, hidden_arguments
from collector.snapshot.take import Found
from collector.snapshot.write import CoreContents, write_plain
from collector.snapshot.write import redacted as hidden_of
from tests.unit.store_samples import numbered

RW = Prot.R | Prot.W
CARD = Pattern(name="card", regex=r"\b[0-9]{16}\b")
NUMBER = b"4000123412341234"
HEAP = Mapping(start=0x10_0000, end=0x10_0000 + 8 * PAGE, prot=RW, path="[heap]")
NEXT = Mapping(start=HEAP.end, end=HEAP.end + 2 * PAGE, prot=RW)
STACK = Mapping(start=0x7000_0000, end=0x7000_0000 + 4 * PAGE, prot=RW, path="[stack]")
MAPPINGS = [HEAP, NEXT, STACK]


class Memory:
    """Memory by address; pages in `absent` are not there. It counts what is read."""

    def __init__(self, data: dict[int, bytes], absent: Sequence[Range] = ()) -> None:
        self._bytes = data
        self._absent = absent
        self.read_bytes = 0

    def ranges(self, start: int, end: int) -> list[Range]:
        assert any(m.start <= start < end <= m.end for m in MAPPINGS), "not in one mapping"
        pages = (page for page in range(start & -PAGE, end, PAGE))
        there = [p for p in pages if not any(a <= p < b for a, b in self._absent)]
        found: list[Range] = []
        for page in there:
            if found and found[-1][1] == page:
                found[-1] = (found[-1][0], page + PAGE)
            else:
                found.append((page, page + PAGE))
        return [(max(a, start), min(b, end)) for a, b in found]

    def unknown(self, start: int, end: int) -> list[Range]:
        return []

    def read(self, address: int, size: int) -> bytes:
        self.read_bytes += size
        out = bytearray(size)
        for at, data in self._bytes.items():
            low, high = max(at, address), min(at + len(data), address + size)
            if low < high:
                out[low - address : high - address] = data[low - at : high - at]
        return bytes(out)

    def read_into(self, address: int, buffer: memoryview) -> int:
        buffer[:] = self.read(address, len(buffer))
        return len(buffer)


def text(arguments: bytes = b"", environment: bytes = b"", at: int = STACK.start) -> ProcText:
    """A process whose arguments and environment are at that address."""
    middle = at + len(arguments)
    places = [at, middle, middle, middle + len(environment)]
    fields = ["S"] + ["0"] * 44 + [str(place) for place in places] + ["0"]
    return ProcText(
        stat=f"7 (x) {' '.join(fields)}".encode(),
        status=b"",
        cmdline=arguments,
        auxv=b"",
        cgroup=b"",
        coredump_filter=b"",
        maps=None,
    )


def redactor(redact: Redact, memory: Memory, whose: ProcText | None = None) -> Redactor:
    return Redactor(redact, MAPPINGS, whose or text(), memory.read)


def written(
    redact: Redact, memory: Memory, start: int, size: int, whose: ProcText | None = None
) -> tuple[bytes, dict[str, int]]:
    """What is written of [start, start + size) in pieces of a page, and what was counted."""
    view = RedactedMemory(memory, redactor(redact, memory, whose))
    buffer = bytearray(size)
    for at in range(0, size, PAGE):
        part = memoryview(buffer)[at : at + PAGE]
        assert view.read_into(start + at, part) == len(part)
    return bytes(buffer), view.counts([(start, start + size)])


@pytest.mark.parametrize(
    ("globs", "arguments", "shown"),
    [
        (["--password"], ["--password", "a b", "c"], ["--password", "[redacted]", "c"]),
        (["--pass"], ["--pass=a", "--passes=b"], ["--pass=[redacted]", "--passes=b"]),
        (["--password=*"], ["--password=a", "--password"], ["--password=[redacted]", "--password"]),
        (["-p*"], ["-pa", "-p", "b"], ["-p[redacted]", "-p", "[redacted]"]),
        (["*secret*"], ["my-secret", "x"], ["[redacted]", "x"]),
        (["*"], ["a", ""], ["[redacted]", ""]),
        (["--last"], ["--last"], ["--last"]),
        (["--t"], ["--t", "\udcff\xe9"], ["--t", "[redacted]"]),
    ],
)  # fmt: skip
def test_arguments(globs: list[str], arguments: list[str], shown: list[str]) -> None:
    assert hidden_arguments(["--password", *arguments], globs, HIDDEN) == ["--password", *shown]


def test_arguments_by_the_thousand_are_hidden_as_a_whole() -> None:
    block = b"p\0" + b"x\0" * 20_000 + b"--password=a\0"
    ((start, end),) = argument_spans(block, ["--password"])
    assert (end, start) == (len(block), 2 * (1 << 14))


def test_variables() -> None:
    block = b"HOME=/\0MY_TOKEN=abc\0TOKEN\0X_TOKEN=\0TOKEN_X=y\0"
    spans = environment_spans(block, ["*TOKEN", "TOKEN_?"])
    assert [block[start:end] for start, end in spans] == [b"abc", b"y"]


def test_a_match_over_the_border_of_two_pages_and_of_two_mappings() -> None:
    # GIVEN two numbers, each of which begins at the end of a page; another is in pages of its own
    first, second = HEAP.start + 3 * PAGE - 5, HEAP.end - 8
    memory = Memory({first: NUMBER, second: NUMBER, HEAP.start + 64: NUMBER + b"5"})
    # WHEN they are written a page at a time
    size = HEAP.size + NEXT.size
    out, counts = written(Redact(patterns=(CARD,)), memory, HEAP.start, size)
    # THEN nothing is left of either, and what only looks like them stands
    for at in (first, second):
        assert out[at - HEAP.start :][:16] == bytes(16)
    assert out[64:81] == NUMBER + b"5"
    assert counts == {"card": 2}


def test_what_lies_around_a_piece_is_read_only_where_there_is_memory() -> None:
    # GIVEN a number that would go on in a page that is not there
    at = HEAP.start + 4 * PAGE
    memory = Memory({at - 8: NUMBER}, absent=[(at, at + PAGE)])
    out, counts = written(Redact(patterns=(CARD,)), memory, at - PAGE, PAGE)
    # THEN it is none, and no more was read than is there
    assert (out[-8:], counts) == (NUMBER[:8], {})
    assert memory.read_bytes <= PAGE + REACH + PAGE


def test_a_mapping_is_not_even_read() -> None:
    memory = Memory({HEAP.start: NUMBER})
    view = RedactedMemory(memory, redactor(Redact(mappings=("heap",)), memory))
    assert list(view.ranges(HEAP.start, HEAP.end)) == []
    assert list(view.ranges(NEXT.start, NEXT.end)) == [(NEXT.start, NEXT.end)]
    assert memory.read_bytes == 0
    assert view.counts([(HEAP.start, NEXT.end)]) == {"mappings": 1}
    assert view.counts([(NEXT.start, NEXT.end)]) == {}
    # AND what was copied of it before is not written either
    given = [(HEAP.end - 4, b"12345678"), (HEAP.start, b"1")]
    assert view.pieces(given) == [(HEAP.end, b"5678")]


def test_a_mapping_whose_name_is_not_known_may_be_one_of_them() -> None:
    nameless = Mapping(start=PAGE, end=2 * PAGE, prot=RW, unnamed=True, inode=1)
    memory = Memory({})
    for names, zeroed in ((("/dev/shm/k*",), [(PAGE, 2 * PAGE)]), (("heap",), [])):
        found = Redactor(Redact(mappings=names), [nameless], text(), memory.read)
        assert found.zeroed == zeroed


def test_values_of_arguments_and_variables_are_found_wherever_they_are() -> None:
    # GIVEN a process that has copied its password, and has set a variable later
    arguments, environment = b"x\0--password\0hunter22\0", b"API_TOKEN=t0psecret\0A=1\0"
    memory = Memory(
        {
            STACK.start: arguments + environment,
            HEAP.start + PAGE - 3: b"hunter22",
            HEAP.start + 2 * PAGE: b"x=t0psecret;",
            HEAP.start + 3 * PAGE: b"\0LATER_TOKEN=other\0kept",
        }
    )
    redact = Redact(environment=("*_TOKEN",), arguments=("--password",))
    whose = text(arguments, environment)
    # THEN they are neither where the kernel has put them, nor elsewhere
    stack, counts = written(redact, memory, STACK.start, PAGE, whose)
    assert stack.rstrip(b"\0") == b"x\0--password\0" + bytes(9) + b"API_TOKEN=" + bytes(10) + b"A=1"
    assert counts == {"arguments": 1, "environment": 1}
    heap, counts = written(redact, memory, HEAP.start, 4 * PAGE, whose)
    assert heap.replace(b"\0", b"") == b"x=;LATER_TOKEN=kept"
    assert counts == {"arguments": 1, "environment": 2}
    # AND their values are told, for other texts
    assert redactor(redact, memory, whose).told() == {
        "arguments": ["hunter22"],
        "environment": ["t0psecret"],
    }


def test_a_value_before_a_variable_is_found_as_well() -> None:
    # GIVEN a value that runs into the name of a variable
    memory = Memory({STACK.start: b"A_TOKEN=hunter22\0", HEAP.start: b"hunter22B_TOKEN=other22"})
    redact = Redact(environment=("*_TOKEN",))
    out, counts = written(redact, memory, HEAP.start, PAGE, text(environment=b"A_TOKEN=hunter22\0"))
    assert out.strip(b"\0") == b"B_TOKEN="
    assert counts == {"environment": 2}


def test_a_block_that_cannot_be_read_is_zeroed() -> None:
    memory = Memory({})
    redact = Redact(environment=("*",))
    found = Redactor(redact, MAPPINGS, text(environment=b"A=1\0"), lambda *_: b"")
    assert found.spans == [(STACK.start, STACK.start + 4, "environment")]
    assert RedactedMemory(memory, found).pieces([(STACK.start, b"A=1\0")]) == [
        (STACK.start, bytes(4))
    ]


def test_what_there_is_no_time_for_is_zeroed(monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN an expression that looks at all of the rest for each of its matches
    slow = Redact(patterns=(Pattern(name="slow", regex="a(.*b)?"),), time=0.01)
    memory = Memory({HEAP.start: b"a" * HEAP.size})
    view = RedactedMemory(memory, redactor(slow, memory))
    buffer = bytearray(HEAP.size)
    view.read_into(HEAP.start, memoryview(buffer))
    view.read_into(HEAP.start, memoryview(buffer)[:PAGE])
    # THEN nothing is left, and that is said
    assert (bytes(buffer), view.unseen) == (bytes(HEAP.size), HEAP.size + PAGE)
    with pytest.raises(OutOfTime):
        list(Rules(msgspec.structs.replace(slow, time=0.0)).hits(b"a"))


def test_more_values_than_are_looked_for() -> None:
    large = {"environment": [b"%06d" % i + bytes(4000) for i in range(100)]}
    assert Rules(Redact(), large).unwatched > 0
    # AND a long one is looked for piece by piece
    rules = Rules(Redact(), {"environment": [b"x" * 1500 + b"y" * 1500]})
    ends = [hit.end for hit in rules.hits(b"x" * 1500 + b"y" * 1500)]
    assert ends == [1024, 2048, 3000]


def test_a_huge_value_costs_no_other_its_place() -> None:
    # GIVEN a variable that is longer than all that is looked for together, and a password
    huge = b"x" * (100 << 10)
    environment = b"BIG_TOKEN=" + huge + b"\0A_TOKEN=hunter22\0"
    memory = Memory({STACK.start: environment, HEAP.start: b"hunter22"})
    redact = Redact(environment=("*_TOKEN",))
    whose = text(environment=environment)
    # THEN the password is found wherever it is, and that the other one is not is said
    out, counts = written(redact, memory, HEAP.start, PAGE, whose)
    assert (out, counts) == (bytes(PAGE), {"environment": 1})
    found = redactor(redact, memory, whose)
    assert found.told() == {"environment": ["hunter22"]}
    assert found.view(memory).why_unseen == (
        "1 values are too much to be looked for elsewhere in memory"
    )


def test_hundreds_of_values_are_found_and_have_no_more_time() -> None:
    # GIVEN many values, of which some lie over the borders of steps
    random = Random(1)
    values = [b"%04d" % number + random.randbytes(8) for number in range(300)]
    rules = Rules(Redact(time=1000.0), {"environment": values})
    data = bytearray(64 << 10)
    places = [(number * 211 + 5, value) for number, value in enumerate(values)]
    for at, value in places:
        data[at : at + len(value)] = value
    hits = [(hit.start, hit.end) for hit in rules.hits(bytes(data))]
    assert hits == [(at, at + len(value)) for at, value in places]
    # AND a time that is over, where none is found
    rules.left = 1e-6
    with pytest.raises(OutOfTime):
        list(rules.hits(random.randbytes(4096)))


def test_arguments_and_variables_that_reach_into_a_piece() -> None:
    arguments = b"x\0-p\0ab\0-p\0cd\0-p\0ef\0"
    memory = Memory({STACK.start: arguments})
    found = redactor(Redact(arguments=("-p",)), memory, text(arguments))
    first, second, third = found.spans
    assert [*found.spans_in(STACK.start, STACK.end)] == [first, second, third]
    assert [*found.spans_in(second[1] - 1, third[0])] == [second]
    assert [*found.spans_in(second[0] + 1, third[0] + 1)] == [second, third]
    assert [*found.spans_in(third[1], STACK.end)] == []


def test_notes_have_neither_arguments_nor_vector_registers() -> None:
    arguments = b"x\0--password=hunter22\0" + NUMBER + b"\0"
    area = bytes(range(256)) * 4
    thread = Thread(tid=1, regs=(7,) * 27, xstate=area, fpregs=area[:512], name="hunter22")
    image = ProcessImage(threads=[thread], psinfo=PsInfo(pid=7, psargs=arguments[:79]))
    memory = Memory({STACK.start: arguments})
    redact = Redact(arguments=("--password",), patterns=(CARD,))
    found = redactor(redact, memory, text(arguments)).image(image)
    assert found.psinfo is not None and found.threads[0].xstate is not None
    assert found.psinfo.psargs.split() == [b"x", b"--password="]
    assert found.threads[0].name == ""
    assert found.threads[0].regs == thread.regs
    assert found.threads[0].xstate[:32] == area[:32]
    assert found.threads[0].xstate[32:416] == bytes(384)
    assert found.threads[0].xstate[416:576] == area[416:576]
    assert found.threads[0].xstate[576:] == bytes(448)
    assert found.threads[0].fpregs == area[:32] + bytes(384) + area[416:512]
    # AND a policy that only leaves mappings out leaves all of that
    assert redactor(Redact(mappings=("heap",)), memory).image(image) == image


def test_a_message_goes_on_behind_what_is_redacted() -> None:
    said = b"card " + NUMBER + b" is no good"
    memory = Memory({NEXT.start: said})
    view = redactor(Redact(patterns=(CARD,), mappings=("heap",)), memory).view(memory, b"*")
    buffer = bytearray(PAGE)
    view.read_into(NEXT.start, memoryview(buffer))
    assert buffer.rstrip(b"\0") == b"card " + b"*" * 16 + b" is no good"
    assert view.counts([]) == {"card": 1}


def test_the_note_counts() -> None:
    redact = Redact(patterns=(CARD,), mappings=("heap",), environment=("A",), arguments=("b",))
    assert redact.uncounted == dict.fromkeys(("card", "environment", "arguments", "mappings"))
    memory = Memory({NEXT.start: NUMBER})
    view = RedactedMemory(memory, redactor(redact, memory))
    view.read_into(NEXT.start, memoryview(bytearray(PAGE)))
    note = CorewardNote(record="", version="", capture="full", consistent=True)
    assert view.note(note, [(HEAP.start, NEXT.end)]).redacted == {"card": 1, "mappings": 1}


def secret_record() -> Record:
    said = Evidence(message="bad card 4000123412341234", what="hunter22", exception="std::bad")
    return msgspec.structs.replace(
        numbered(1),
        cmdline=["pay", "--password", "x", "4000123412341234"],
        reason="abort: bad card 4000123412341234",
        abort_message="bad card 4000123412341234",
        attributes={"RELEASE": "v1 hunter22", "A_TOKEN": "zzz"},
        logs=[LogLine(time=numbered(1).time, pid=1, message="paid by 4000123412341234")],
        diagnosis=Diagnosis(evidence=said),
        redacted={"card": 2},
    )


REDACT = Redact(patterns=(CARD,), environment=("*_TOKEN",), arguments=("--password",))
SECRETS = {"environment": ["hunter22"]}


def test_arguments_of_the_killer_are_hidden_as_well() -> None:
    killer = Killer(by=KilledBy.PROCESS, cmdline=["kill", "--password", "x", "card"])
    record = msgspec.structs.replace(numbered(1), killer=killer)
    found = concealed(record, REDACT, lambda text: text.replace("card", "-"))
    assert found.killer is not None
    assert found.killer.cmdline == ["kill", "--password", HIDDEN, "-"]


def test_names_of_other_processes_and_of_the_pod_are_looked_through() -> None:
    # GIVEN a record whose every text from elsewhere has the number
    above, name = [Relative(pid=1, comm="sh card")], {"note": "card"}
    record = msgspec.structs.replace(
        numbered(1),
        killer=Killer(by=KilledBy.PROCESS, parents=above),
        ancestry=above,
        sender=Sender(pid=1, uid=0, comm="card"),
        oom_facts=OomFacts(tasks=[OomTask(pid=1, comm="card", resident=1)]),
        pod=Pod(uid="u", source=PodSource.CGROUP, labels=name, annotations=name),
        runtime=ManagedRuntime(name="java", report="/tmp/card"),
    )
    # THEN none has it afterwards
    found = concealed(record, REDACT, lambda text: text.replace("card", "-"))
    assert b"card" in msgspec.json.encode(record)
    assert b"card" not in msgspec.json.encode(found)
    # AND what a pod says of itself is on no disk before
    assert withheld(record).pod == Pod(
        uid="u", source=PodSource.CGROUP, labels={"note": HIDDEN}, annotations={"note": HIDDEN}
    )


@pytest.mark.parametrize(
    ("text", "shown", "counts"),
    [
        ("key \\xff\\xfe1234 is it", f"key {HIDDEN} is it", {"environment": 1}),
        ("\\xe9 id\\xff42 \\xe9", f"\\xe9 {HIDDEN} \\xe9", {"binary": 1}),
        ("\\xe9 as it was, C:\\x64", "\\xe9 as it was, C:\\x64", {}),
    ],
)
def test_values_that_are_not_utf8_are_found_where_they_are_spelled_out(
    text: str, shown: str, counts: dict[str, int]
) -> None:
    binary = Pattern(name="binary", regex=r"id\xff[0-9]+")
    rules = Rules(Redact(patterns=(binary,)), {"environment": [b"\xff\xfe1234"]})
    found: dict[str, int] = {}
    assert (rules.hidden(text, HIDDEN, found), found) == (shown, counts)


def test_a_match_over_the_border_of_two_steps() -> None:
    # GIVEN a number over such a border, and a longer one of which the step's part looks like one
    step, rules = 128 << 10, Rules(Redact(patterns=(CARD,)))
    one = b" " * (step - 8) + NUMBER + b" " * (2 * step)
    other = b" " * (step - 1) + b"5" + NUMBER + b" " * (2 * step)
    # THEN it is found, once, and the other is not
    assert list(rules.hits(one)) == [("card", step - 8, step + 8)]
    assert list(rules.hits(other)) == []


def test_a_search_that_takes_long_is_given_up_in_the_middle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # GIVEN memory in which one search for this takes long (16 s for 4 MiB)
    monkeypatch.setattr(rules_module, "_AT_ONCE", 0.01)
    monkeypatch.setattr(rules_module, "_LONG_STEP", 4 << 10)
    data = bytes(Random(1).choices(b"ab", k=1 << 20))
    slow = Pattern(name="slow", regex="a[ab]{500}c")
    for patterns in ((slow,), (slow, CARD)):
        # WHEN it is looked through
        rules = Rules(Redact(patterns=patterns))
        with pytest.raises(OutOfTime):
            list(rules.hits(data))
        # THEN most of it has not been
        assert rules.left > 60 - 2


def test_a_record_has_its_texts_without_the_secrets() -> None:
    # WHEN the process that looks through them is asked
    found = redacted(secret_record(), REDACT, SECRETS)
    # THEN what it finds is hidden and counted, and all else is as it was
    assert found.cmdline == ["pay", "--password", HIDDEN, HIDDEN]
    assert found.reason == f"abort: bad card {HIDDEN}"
    assert found.abort_message == f"bad card {HIDDEN}"
    assert found.attributes == {"RELEASE": f"v1 {HIDDEN}", "A_TOKEN": HIDDEN}
    assert found.logs is not None and found.logs[0].message == f"paid by {HIDDEN}"
    assert found.diagnosis is not None
    assert found.diagnosis.evidence == Evidence(
        message=f"bad card {HIDDEN}", what=HIDDEN, exception="std::bad"
    )
    assert found.redacted == {"card": 7, "environment": 2}
    assert (found.id, found.frames) == (secret_record().id, secret_record().frames)


@pytest.mark.parametrize("question", [b"{", b"x"])
def test_where_nobody_can_look_the_texts_are_left_out(
    monkeypatch: pytest.MonkeyPatch, question: bytes
) -> None:
    monkeypatch.setattr(ask, "_ask", lambda *_: question)
    found = redacted(secret_record(), REDACT, SECRETS)
    assert found.lost["redaction"].startswith("its texts are left out, nobody could look: ")
    assert msgspec.structs.replace(found, lost={}) == msgspec.structs.replace(
        withheld(secret_record()), lost={}
    )
    assert b"4000" not in msgspec.json.encode(found)


def test_texts_for_which_there_is_no_time_are_left_out() -> None:
    late = msgspec.structs.replace(REDACT, time=0.0)
    found = answer(Question(record=secret_record(), redact=late))
    assert isinstance(found, Record)
    assert b"4000" not in msgspec.json.encode(found)
    assert found.lost["redaction"].endswith("within 0 s (redact.time)")


def test_the_policy_of_a_rule_is_laid_over_the_defaults() -> None:
    policy = loads(
        "defaults: {redact: {environment: '*TOKEN*', time: 2s}}\n"
        "rules:\n"
        "- name: pay\n"
        "  match: {comm: pay}\n"
        "  redact: {patterns: [{name: card, regex: '[0-9]{16}'}], mappings: heap}\n"
        "- name: none\n"
        "  match: {comm: x}\n"
        "  redact: {environment: []}\n",
        "test",
    )
    pay, none = (rule.action.redact for rule in policy.rules)
    assert pay == Redact(
        environment=("*TOKEN*",),
        patterns=(Pattern(name="card", regex="[0-9]{16}"),),
        mappings=("heap",),
        time=2.0,
    )
    assert (none.anything, policy.defaults.redact.texts) == (False, True)


@pytest.mark.parametrize(
    ("redact", "problem"),
    [
        ("environment: A-B", "expected a name of variables such as"),
        ("arguments: ['']", "expected a glob of arguments such as"),
        ("mappings: ['[heap]']", "write the kind without brackets: heap"),
        ("patterns: [{name: a}]", "has no `regex`"),
        ("patterns: [{regex: a}]", "has no `name`"),
        ("patterns: [{name: a, regex: '(?=b)'}]", "invalid perl operator"),
        ("patterns: [{name: a, regex: 'b*'}]", "matches no bytes at all"),
        ("patterns: [{name: a, regex: 7}]", "is not text to YAML; quote it"),
        ("patterns: [{name: mappings, regex: b}]", "expected another name than"),
        ("time: 1d", "expected a duration from 1s to 1h"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(redact: str, problem: str) -> None:
    with pytest.raises(PolicyErrors) as error:
        loads(f"defaults:\n  redact:\n    {redact}\n", "test.yaml")
    assert "test.yaml:3: defaults.redact." in str(error.value)
    assert problem in str(error.value)


def test_the_agent_reads_patterns_without_their_engine() -> None:
    text = "defaults: {redact: {patterns: [{name: a, regex: b}]}}"
    reading = (
        "import sys; from collector.policy.load import loads; "
        f"assert loads({text!r}, '').defaults.redact.texts; "
        "sys.exit('re2' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", reading], check=False).returncode == 0


def test_expressions_that_cannot_be_checked_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask, "_ask", lambda *_: b"{")
    with pytest.raises(PolicyErrors, match="cannot be checked"):
        loads("defaults: {redact: {patterns: [{name: a, regex: b}]}}", "test")


def test_a_backreference_is_refused() -> None:
    with pytest.raises(ValueError, match="invalid escape sequence"):
        compiled(rb"(a)\1")


def test_binary_numbers_are_bytes() -> None:
    rules = Rules(Redact(patterns=(Pattern(name="key", regex=r"\xff\x00.{2}"),)))
    assert [tuple(hit) for hit in rules.hits(struct.pack("<IH", 0x0100FF, 7))] == [("key", 0, 4)]


def test_what_is_redacted_of_a_process_that_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "coreward.yaml"
    rule = "{{name: {0}, match: {{{1}}}, redact: {{environment: {0}}}}}"
    config.write_text(
        f"rules: [{rule.format('A', 'cause: signal')}, {rule.format('B', f'uid: {os.getuid()}')}]"
    )
    # GIVEN rules, the first of which is only for what has died
    assert redaction_by(config)(os.getpid()).environment == ("B",)
    # AND the usual file, which is there, is not, or is not for us
    monkeypatch.setattr(redaction, "DEFAULT_CONFIG", config)
    assert redaction_by()(os.getpid()).environment == ("B",)
    monkeypatch.setattr(redaction, "_may_read", lambda _: False)
    assert not redaction_by()(os.getpid()).anything
    assert capsys.readouterr().err == f"coreward: {config} cannot be read: nothing is redacted\n"
    monkeypatch.setattr(redaction, "DEFAULT_CONFIG", tmp_path / "none")
    assert not redaction_by()(os.getpid()).anything


@pytest.mark.parametrize("redact", [REDACT, Redact(mappings=("heap",))])
def test_a_core_whose_memory_is_in_its_file_already_is_refused(
    redact: Redact, tmp_path: Path
) -> None:
    # GIVEN memory that was staged in the core's own file, whoever asked for that
    found = cast(Found, SimpleNamespace(in_file=object(), core=3))
    file = tmp_path / "core"
    # THEN neither way of writing it takes that for a redacted one
    with file.open("wb") as core:
        with pytest.raises(CaptureError, match="before it was redacted"):
            write_plain(found, CoreContents(redact=redact), core.fileno())
        with pytest.raises(CaptureError, match="before it was redacted"):
            hidden_of(found, CoreContents(redact=redact))
    assert file.read_bytes() == b""
