"""For each category a program really dies of it, and its diagnosis is compared whole.

What differs from run to run is put in words first: an address is told by the mapping that it lies
in, a distance only if it is less than a page.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from tests.record_schema import complaints
from tests.system.agents import RunningAgent, agent
from tests.system.memory_cgroups import memory_cgroup
from tests.system.victims import ROOT, Victim, running, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
CONFIG = """
defaults: {limit: none, routine: record, attributes: [RELEASE, MISSING]}
rules: [{name: exits, match: {cause: exit, exe: "*/diagnoses"}, capture: record}]
"""
CANONICAL = range(0x10000, 1 << 47)


@pytest.fixture(scope="module")
def watching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningAgent]:
    with agent(tmp_path_factory.mktemp("agent"), config=CONFIG) as one:
        yield one


def in_words(record: dict[str, Any]) -> dict[str, Any]:
    """Category, confidence and evidence without what differs from run to run."""
    found = record["diagnosis"]
    assert found["version"] == 1
    told = {key: _told(key, value, record) for key, value in found["evidence"].items()}
    instruction = told.pop("instruction", None)
    if instruction is not None:
        told["instruction"] = instruction["text"]
    return {"category": found["category"], "confidence": found["confidence"], **told}


def _told(key: str, value: Any, record: dict[str, Any]) -> Any:
    if isinstance(value, dict) and "permissions" in value:
        name = PurePosixPath(value["name"]).name if "name" in value else "anonymous"
        distance = value.get("distance", 0)
        beside = f" {distance} bytes off" if 0 < distance <= 4096 else ""
        return f"{value['permissions']} {name}{beside}"
    if key in ("address", "ip") and value in CANONICAL:
        return "ip" if value == record["ip"] else "somewhere"
    if key in ("pid", "tid"):
        return {record["pid"]: "itself", os.getpid(): "the test"}.get(value, "another")
    return value


EXE = {"above": "r-- diagnoses"}
HERE = {"ip": "ip", "tid": "itself", "thread": "diagnoses"}
IN_STACK = {**HERE, "stack": "rw- [stack]", "sp_in_stack": True}
FAULTS: list[tuple[str, dict[str, Any]]] = [
    (
        "null-dereference",
        {
            "confidence": "certain",
            "address": 0,
            "access": "write",
            "instruction": "movb $1, (%rax)",
            "null_registers": ["rax"],
            **EXE,
            **IN_STACK,
        },
    ),
    (
        "near-null",
        {
            "confidence": "likely",
            "address": 24,
            "offset": 24,
            "access": "read",
            "instruction": "movq 0x18(%rax), %rax",
            "null_registers": ["rax"],
            **EXE,
            **IN_STACK,
        },
    ),
    (
        "far-from-null",
        {
            "category": "near-null",
            "confidence": "likely",
            "address": "somewhere",
            "offset": 0x400000,
            "access": "read",
            "instruction": "movl 0x400000(%rdx), %eax",
            "null_registers": ["rdx"],
            **EXE,
            **IN_STACK,
        },
    ),
    (
        "before-null",
        {
            "category": "near-null",
            "confidence": "likely",
            "address": (1 << 64) - 8,
            "offset": -8,
            "access": "read",
            "instruction": "movl (%rax), %eax",
            "below": "--x [vsyscall]",
            **IN_STACK,
        },
    ),
    (
        "bad-call",
        {
            "confidence": "certain",
            "address": 0,
            "access": "execute",
            **EXE,
            **IN_STACK,
            "ip": 0,
        },
    ),
    (
        "unmapped-call",
        {
            "category": "bad-call",
            "confidence": "certain",
            "address": "ip",
            "access": "execute",
            **EXE,
            **IN_STACK,
        },
    ),
    (
        "bad-return",
        {
            "category": "bad-call",
            "confidence": "certain",
            "address": 0x4141414141414141,
            "access": "execute",
            "instruction": "retq",
            **IN_STACK,
        },
    ),
    (
        "freed-memory",
        {
            "confidence": "likely",
            "address": "somewhere",
            "access": "read",
            "instruction": "movq 0x18(%rax), %rax",
            **EXE,
            **IN_STACK,
        },
    ),
    (
        "non-canonical",
        {
            "confidence": "certain",
            "address": 0x4141414141414140,
            "access": "read",
            "instruction": "movl (%rax), %eax",
            **IN_STACK,
        },
    ),
    (
        "execute-data",
        {
            "confidence": "certain",
            "address": "ip",
            "access": "execute",
            "instruction": "retq",
            "mapping": "rw- diagnoses",
            **IN_STACK,
        },
    ),
    (
        "write-read-only",
        {
            "confidence": "certain",
            "address": "somewhere",
            "access": "write",
            "instruction": "movb $1, (%rax)",
            "mapping": "r-- anonymous",
            **IN_STACK,
        },
    ),
    (
        "no-access",
        {
            "confidence": "certain",
            "address": "somewhere",
            "access": "read",
            "instruction": "movl (%rax), %eax",
            "mapping": "--- anonymous",
            **IN_STACK,
        },
    ),
    (
        "misaligned",
        {
            "confidence": "certain",
            "address": "somewhere",
            "access": "write",
            "instruction": "movaps %xmm0, 8(%rax)",
            "mapping": "rw- diagnoses",
            **IN_STACK,
        },
    ),
    (
        "privileged-instruction",
        {"confidence": "certain", "instruction": "hlt", **IN_STACK},
    ),
    (
        "thread-overflow",
        {
            "category": "stack-overflow",
            "confidence": "certain",
            "address": "somewhere",
            "access": "write",
            "mapping": "--- anonymous",
            "stack": "rw- anonymous",
            "sp_in_stack": False,
            "ip": "ip",
            "tid": "another",
            "thread": "deep",
        },
    ),
    (
        "handled-overflow",
        {
            "category": "stack-overflow",
            "confidence": "likely",
            "signal": 11,
            "handled": True,
            "address": "somewhere",
            "ip": "somewhere",
            "tid": "itself",
            "thread": "diagnoses",
        },
    ),
    (
        "heap-corruption",
        {
            "confidence": "certain",
            "message": "double free or corruption (out)",
            **HERE,
        },
    ),
    (
        "buffer-overflow",
        {
            "confidence": "certain",
            "message": "*** stack smashing detected ***: terminated",
            **HERE,
        },
    ),
    ("raised", {"confidence": "likely", **HERE}),
    ("file-size-limit", {"confidence": "certain"}),
    ("cpu-limit", {"confidence": "certain", "by": "cpu-limit"}),
    ("broken-pipe", {"confidence": "certain"}),
    ("timer", {"confidence": "certain", "by": "timer"}),
    ("exit-status", {"confidence": "certain", "exit_code": 3}),
]
# the same by programs that other tests have
OTHERS: list[tuple[str, str, dict[str, Any]]] = [
    (
        "bus_truncated",
        "past-end-of-file",
        {"access": "read", "address": "somewhere", "mapping": "r-- truncated"},
    ),
    ("illegal", "illegal-instruction", {"instruction": "ud2"}),
    ("divide", "division", {"instruction": "idivl %ecx"}),
    ("breakpoint", "trap", {"instruction": "nop"}),
    ("seccomp", "seccomp", {"syscall": 110, "instruction": "cmpq $-0xfff, %rax"}),
]


def die(watching: RunningAgent, victim: Victim) -> dict[str, Any]:
    """Let it die; its record, which fits the published schema."""
    victim.go()
    victim.wait()
    record = watching.record(victim.pid)
    assert complaints(record) == []
    return record


def without(told: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in told.items() if key not in keys}


@pytest.mark.parametrize(("kind", "expected"), FAULTS, ids=[kind for kind, _ in FAULTS])
def test_a_death_of_each_kind(
    watching: RunningAgent, kind: str, expected: dict[str, Any], tmp_path: Path
) -> None:
    # WHEN a program dies in one of many ways
    with running("diagnoses", kind, cwd=tmp_path) as victim:
        record = die(watching, victim)
    told = in_words(record)
    if kind == "thread-overflow":  # the compiler chose how it enters a function
        assert re.fullmatch(r"(mov|push|call).*", told.pop("instruction"))
    # THEN its diagnosis says which, and what that rests on
    assert told == {"category": kind, **expected}


def test_the_main_thread_runs_out_of_stack(watching: RunningAgent, tmp_path: Path) -> None:
    with running("diagnoses", "stack-overflow", cwd=tmp_path) as victim:
        record = die(watching, victim)
    told = without(in_words(record), "instruction", "below")
    assert re.fullmatch(r"rw- \[stack\] \d+ bytes off", told.pop("above"))
    assert told == {
        "category": "stack-overflow",
        "confidence": "certain",
        "address": "somewhere",
        "access": "write",
        **IN_STACK,
        "sp_in_stack": False,
    }


def test_memory_that_was_unmapped(watching: RunningAgent, tmp_path: Path) -> None:
    with running("diagnoses", "unmapped", cwd=tmp_path) as victim:
        record = die(watching, victim)
    assert {"below", "above"} <= record["diagnosis"]["evidence"].keys()
    assert without(in_words(record), "below", "above") == {
        "category": "unmapped",
        "confidence": "certain",
        "address": "somewhere",
        "access": "read",
        "instruction": "movl (%rax), %eax",
        **IN_STACK,
    }


@pytest.mark.parametrize(("name", "category", "more"), OTHERS, ids=[name for name, *_ in OTHERS])
def test_what_an_instruction_cannot_do(
    watching: RunningAgent, name: str, category: str, more: dict[str, Any], tmp_path: Path
) -> None:
    with running(name, cwd=tmp_path) as victim:
        record = die(watching, victim)
    told = in_words(record)
    if "mapping" in told:
        told["mapping"] = re.sub(r" .*$", " truncated", told["mapping"])
    if "instruction" not in more:
        told.pop("instruction")
    expected = {"category": category, "confidence": "certain", **IN_STACK, **more}
    assert told == {**expected, "thread": record["comm"]}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "assertion",
            {
                "category": "assertion",
                "message": "assertion: assertion.c:8: require: Assertion `value == 0' failed.",
            },
        ),
        ("heap_abort", {"category": "abort"}),
        (
            "uncaught",
            {
                "category": "uncaught-exception",
                "exception": "std::runtime_error",
                "what": "no such item",
            },
        ),
    ],
)
def test_a_program_that_gives_up(
    watching: RunningAgent, name: str, expected: dict[str, Any], tmp_path: Path
) -> None:
    with running(name, cwd=tmp_path) as victim:
        record = die(watching, victim)
    here = {"ip": "ip", "tid": "itself", "thread": record["comm"]}
    assert in_words(record) == {"confidence": "certain", **here, **expected}


def test_killed(watching: RunningAgent, tmp_path: Path) -> None:
    with running("wait_for_kill", cwd=tmp_path) as victim:
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
    told = in_words(watching.record(victim.pid))
    assert told == {
        "category": "killed",
        "confidence": "certain",
        "by": "process",
        "pid": "the test",
        "comm": Path(f"/proc/{os.getpid()}/comm").read_text().rstrip("\n"),
        "uid": 0,
    }


def test_out_of_memory(watching: RunningAgent, tmp_path: Path) -> None:
    # GIVEN a process that wants twice what its cgroup has
    with memory_cgroup(32 << 20) as group:
        with group.entered():
            context = running("probe_hog", "64", cwd=tmp_path)
            victim = context.__enter__()
        try:
            record = die(watching, victim)
        finally:
            context.__exit__(None, None, None)
    told = in_words(record)
    # THEN the diagnosis has the limit, and what was used of it
    assert 30 << 20 <= told.pop("usage") <= 32 << 20
    told.pop("resident", None)
    assert told == {
        "category": "out-of-memory",
        "confidence": "certain",
        "cgroup": f"/{group.path.name}",
        "limit": 32 << 20,
    }


def test_what_else_was_true(
    watching: RunningAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a process with a release in its environment, and a secret
    monkeypatch.setenv("RELEASE", "2.3")
    monkeypatch.setenv("TOKEN", "not-to-be-told")
    with running("null_main", cwd=tmp_path) as victim:
        # WHEN it dies
        record = die(watching, victim)
    # THEN its record has what policy names of that, and nothing else
    assert record["attributes"] == {"RELEASE": "2.3"}
    assert "not-to-be-told" not in json.dumps(record)
    # AND what lay above it, and where and when that was
    assert [one["pid"] for one in record["ancestry"]][:1] == [os.getpid()]
    assert record["ancestry"][-1]["pid"] == 1
    assert 0 <= record["age_s"] < 900
    host = record["host"]
    assert (host["name"], host["kernel"]) == (os.uname().nodename, os.uname().release)
    # AND people are shown it
    shown = watching.command("info", record["id"])
    assert re.search(r"^  RELEASE +2\.3$", shown, re.MULTILINE)
    assert re.search(r"^  instruction +mov", shown, re.MULTILINE)


def test_the_package_of_a_program(watching: RunningAgent, tmp_path: Path) -> None:
    # GIVEN a program of the distribution
    program = subprocess.Popen(["/usr/bin/sleep", "1000"], cwd=tmp_path)
    wait_until(lambda: "sleep" in Path(f"/proc/{program.pid}/comm").read_text(), "it runs")
    known = subprocess.run(
        ["dpkg-query", "-f", "${Version}", "-W", "coreutils"],
        capture_output=True,
        text=True,
        check=True,
    )
    # WHEN it dies
    program.send_signal(signal.SIGABRT)
    program.wait()
    record = watching.record(program.pid)
    # THEN its record has the package, and its version
    expected = {"name": "coreutils", "version": known.stdout, "source": "dpkg"}
    assert record["package"] == expected
    assert complaints(record) == []


def test_a_snapshot_has_the_open_files(watching: RunningAgent, tmp_path: Path) -> None:
    # GIVEN a process that waits at a pipe
    with running("wait_for_kill", cwd=tmp_path) as victim:
        record = watching.snapshot(victim.pid)
    # THEN a snapshot of it has its open files, and no diagnosis
    kinds = {one["fd"]: one["kind"] for one in record["descriptors"]}
    assert (kinds[0], kinds[1]) == ("pipe", "pipe")
    assert record["diagnosis"] is None
    assert complaints(record) == []


RUST = """
#[inline(never)]
fn take(row: Option<u64>) -> u64 { row.unwrap() }
fn main() { println!("{}", take(std::hint::black_box(None))); }
"""
GO = """
package main
func take(rows []int, n int) int { return rows[n] }
func main() { println(take(nil, 3)) }
"""


@pytest.mark.skipif(shutil.which("rustc") is None, reason="there is no Rust compiler")
def test_a_panic_of_rust(watching: RunningAgent, tmp_path: Path) -> None:
    (tmp_path / "panics.rs").write_text(RUST)
    command = ["rustc", "-C", "panic=abort", "-g", "-o", "panics", "panics.rs"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    done = subprocess.Popen([tmp_path / "panics"], cwd=tmp_path, stderr=subprocess.DEVNULL)
    assert done.wait() == -signal.SIGABRT
    record = watching.record(done.pid)
    told = in_words(record)
    assert (told["category"], told["confidence"]) == ("rust-panic", "certain")
    assert record["reason"] == "SIGABRT: Rust panic in `panics::take` (panics)"


@pytest.mark.skipif(shutil.which("go") is None, reason="there is no Go compiler")
def test_a_panic_of_go(watching: RunningAgent, tmp_path: Path) -> None:
    (tmp_path / "panics.go").write_text(GO)
    environment = {
        **os.environ,
        **{"GO111MODULE": "off", "GOTOOLCHAIN": "local"},
        "GOCACHE": str(ROOT / "build" / "go-cache"),
    }
    command = ["go", "build", "-o", "panics", "panics.go"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, env=environment)
    done = subprocess.Popen(
        [tmp_path / "panics"],
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
        env={**environment, "GOTRACEBACK": "crash"},
    )
    assert done.wait() == -signal.SIGABRT
    record = watching.record(done.pid)
    told = in_words(record)
    assert (told["category"], told["confidence"]) == ("go-panic", "certain")
    assert "main.take" in record["reason"]
