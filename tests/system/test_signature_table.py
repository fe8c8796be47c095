"""Twelve kinds of bugs, built in twelve ways, run several times: which of them have one signature.

The cores are the kernel's own and are unwound in this process, one after the other: a process for
each of some hundred would take minutes. What is sampled: each bug runs 5 times in a build of GCC
with symbols and in one of clang without, and once in each other build: 240 deaths. With
COREWARD_WHOLE_TABLE=1 it runs 5 times in all of them: 720.
"""

from __future__ import annotations

import datetime
import itertools
import os
import resource
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from collector.arch.x86_64 import IP, SP
from collector.elfcore.reader import CoreFile
from collector.explain.facts import with_explanation
from collector.explain.files import Root
from collector.explain.find import Finder
from collector.explain.reason import concluded
from collector.model import Cause, Record, Signature
from collector.siginfo import decode
from collector.signals import signal_name
from collector.signature.compose import signed
from collector.signature.rules import rules
from collector.signature.stack import stack_key
from tests.system.settings import kernel_settings
from tests.system.victims import ROOT

SOURCE = ROOT / "tests/victims/bugs.c"
BUGS = (
    *("null", "call", "freed", "twice", "recursion", "assertion"),
    *("division", "trap", "constant", "smash", "copy", "file"),
)
COMPILERS = (("gcc", "-O0"), ("gcc", "-O2"), ("clang", "-O2"))
POINTERS = ("-fomit-frame-pointer", "-fno-omit-frame-pointer")
OFTEN = {("gcc", "-O0", POINTERS[1], False), ("clang", "-O2", POINTERS[0], True)}  # 5 times
TIMES = 5


class Build(NamedTuple):
    compiler: str
    level: str
    pointers: str
    stripped: bool

    @property
    def name(self) -> str:
        kept = "stripped" if self.stripped else "symbols"
        return f"{self.compiler} {self.level} {self.pointers[2:6]}-fp {kept}"

    @property
    def times(self) -> int:
        whole = os.environ.get("COREWARD_WHOLE_TABLE") == "1"
        return TIMES if whole or tuple(self) in OFTEN else 1


class Died(NamedTuple):
    bug: str
    build: Build
    signature: Signature


BUILDS = [
    Build(*how, pointers, stripped)
    for how, pointers, stripped in itertools.product(COMPILERS, POINTERS, (False, True))
]


@pytest.fixture(scope="module")
def deaths(tmp_path_factory: pytest.TempPathFactory) -> list[Died]:
    folder = tmp_path_factory.mktemp("bugs")
    root = os.open("/", os.O_PATH | os.O_CLOEXEC)
    try:
        with kernel_settings(core_pattern="core", core_uses_pid="0"):
            return list(_deaths(folder, Root(root)))
    finally:
        os.close(root)


def _deaths(folder: Path, root: Root) -> Iterator[Died]:
    for number, build in enumerate(BUILDS):
        program = folder / str(number) / "bugs"
        program.parent.mkdir()
        flags = ["-g", "-fstack-protector-all", "-w", build.level, build.pointers]
        subprocess.run([build.compiler, *flags, "-o", program, SOURCE], check=True)
        if build.stripped:
            subprocess.run(["strip", "-s", program], check=True)
        for bug in BUGS:
            for _ in range(build.times):
                yield Died(bug, build, _signature(program, bug, folder, root))


def _signature(program: Path, bug: str, folder: Path, root: Root) -> Signature:
    core = folder / "core"
    core.unlink(missing_ok=True)
    subprocess.run(
        [program, bug],
        cwd=folder,
        check=False,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (1 << 30, 1 << 30)),
    )
    assert core.exists(), f"{program} {bug}: left no core"
    signature = signed(_record(core, program, root)).signature
    assert signature is not None
    return signature


def _record(core: Path, program: Path, root: Root) -> Record:
    """What a record has of the death, and its explanation."""
    from collector.explain.unwind import explain  # noqa: PLC0415 - it loads drgn

    with CoreFile(core) as opened:
        info = decode(opened.siginfo or b"")
        registers = opened.threads[0].regs
    assert info is not None
    finder = Finder(root, program, {}, core.stat().st_mtime)  # `explain` closes it
    explanation = explain(core, finder)
    record = Record(
        id="0" * 16,
        time=datetime.datetime.now(datetime.UTC),
        pid=1,
        tid=1,
        cause=Cause.SIGNAL,
        comm=program.name,
        exe=str(program),
        start_ns=1,
        signal=info.signal,
        signal_name=signal_name(info.signal),
        si_code=info.code,
        si_addr=info.address,
        ip=registers[IP],
        sp=registers[SP],
    )
    key = stack_key(explanation.frames or [], rules())
    explanation = msgspec.structs.replace(explanation, stack=key)
    return concluded(with_explanation(record, explanation))


def _table(deaths: list[Died]) -> str:
    """A line for each signature: the bugs that have it, in how many deaths and builds."""
    found: dict[str, list[Died]] = defaultdict(list)
    for died in deaths:
        found[died.signature.text or "?"].append(died)
    lines = [f"{len(deaths)} deaths of {len(BUGS)} bugs in {len(BUILDS)} builds: signatures"]
    for text, some in sorted(found.items(), key=lambda item: BUGS.index(item[1][0].bug)):
        kept = {died.build.name for died in some if not died.build.stripped}
        stripped = {died.build.name for died in some if died.build.stripped}
        bugs = ", ".join(f"{bug} {count}" for bug, count in Counter(d.bug for d in some).items())
        lines.append(f"  {bugs:<14} {len(kept):>2} builds, {len(stripped):>2} stripped  {text}")
    return "\n".join(lines)


def test_one_bug_has_one_signature_in_all_builds_with_symbols(
    deaths: list[Died], capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        print("\n" + _table(deaths))
    # GIVEN all deaths of a bug in programs that have their symbols, THEN they have one signature
    of: dict[str, set[str | None]] = defaultdict(set)
    for died in deaths:
        if not died.build.stripped:
            of[died.bug].add(died.signature.text)
    assert {bug: found for bug, found in of.items() if len(found) != 1} == {}
    assert set(of) == set(BUGS)


def test_one_bug_has_one_signature_over_runs_of_a_build(deaths: list[Died]) -> None:
    # GIVEN several runs of one build, stripped or not, THEN each bug has one signature and stack
    of: dict[tuple[str, str], set[tuple[str | None, str | None]]] = defaultdict(set)
    for died in deaths:
        of[died.bug, died.build.name].add((died.signature.text, died.signature.fine))
    assert {key: found for key, found in of.items() if len(found) != 1} == {}
    assert len(of) == len(BUGS) * len(BUILDS)


def test_no_two_bugs_have_one_signature(deaths: list[Died]) -> None:
    # GIVEN all deaths, of all builds, THEN each signature is that of one bug
    of: dict[str | None, set[str]] = defaultdict(set)
    for died in deaths:
        of[died.signature.id].add(died.bug)
    assert {id: bugs for id, bugs in of.items() if len(bugs) > 1} == {}
