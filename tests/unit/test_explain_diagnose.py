"""What a death is diagnosed as, for each category: the whole diagnosis."""

from __future__ import annotations

import datetime
import signal
from typing import Any

import pytest

from collector.diagnosis import Category, Confidence, Diagnosis, Evidence
from collector.explain.diagnose import diagnosed
from collector.explain.reason import concluded
from collector.model import (
    Access,
    CallsFacts,
    Cause,
    Fault,
    Frame,
    KilledBy,
    Killer,
    OomFacts,
    Record,
    Sender,
    SnapshotFacts,
    UnitState,
)
from collector.store.encoding import decode, encode

CERTAIN, LIKELY, GUESS = Confidence.CERTAIN, Confidence.LIKELY, Confidence.GUESS
IP, SP = 0x401136, 0x7FFC12345F80
KERNEL = 0x80  # si_code of what the kernel sends on its own account


def record(**facts: Any) -> Record:
    """The main thread of pid 700 died by SIGSEGV, unless said otherwise."""
    base: dict[str, Any] = {
        "id": "0123456789abcdef",
        "time": datetime.datetime(2025, 1, 2, tzinfo=datetime.UTC),
        "pid": 700,
        "tid": 700,
        "cause": Cause.SIGNAL,
        "comm": "victim",
        "start_ns": 1,
        "signal": signal.SIGSEGV,
    }
    return Record(**{**base, **facts})


def fault(code: int, address: int | None, access: Access | None = None, **facts: Any) -> Record:
    """A fault of the hardware at IP."""
    base = {"si_code": code, "si_addr": address, "fault_access": access, "ip": IP, "sp": SP}
    return record(**{**base, **facts})


def aborted(*functions: str, message: str | None = None, **facts: Any) -> Record:
    frames = [Frame(pc=n, function=name) for n, name in enumerate(("raise", "abort", *functions))]
    base = {"signal": signal.SIGABRT, "si_code": -6, "frames": frames, "abort_message": message}
    return record(**{**base, **facts})


def at(address: int | None, access: Access | None = None, **more: Any) -> Evidence:
    return Evidence(**{"ip": IP, "tid": 700, "address": address, "access": access, **more})


def gave(message: str | None = None) -> Evidence:
    return Evidence(tid=700, message=message)


R, W, X = Access.READ, Access.WRITE, Access.EXECUTE
FAULT = Fault(time_ns=1, tid=700, signal=11, si_code=1, si_addr=SP - 8, ip=0x401200, sp=SP)
BASH = {"pid": 812, "comm": "bash", "uid": 0}
OOM = OomFacts(cgroup="/shop", limit=64 << 20, usage=63 << 20)
UNMAPPED = CallsFacts(
    threads=1,
    calls=2,
    rule="all",
    file="calls.zst",
    unmapped=[(0x8000, 0x9000), (0x10000, 0x11000)],
)

DIAGNOSES = [
    (fault(1, 0, W), "null-dereference", CERTAIN, at(0, W)),
    (fault(1, 0x18, R), "near-null", LIKELY, at(0x18, R, offset=0x18)),
    (
        fault(1, 0xFFFF_FFFF_FFFF_FFF8, R),
        "near-null",
        LIKELY,
        at(0xFFFF_FFFF_FFFF_FFF8, R, offset=-8),
    ),
    (fault(1, 0x10000, R), "unmapped", CERTAIN, at(0x10000, R)),
    (
        fault(1, 0x10000, R, calls=UNMAPPED),
        "use-after-unmap",
        CERTAIN,
        at(0x10000, R),
    ),
    (fault(1, 0x11000, R, calls=UNMAPPED), "unmapped", CERTAIN, at(0x11000, R)),
    (fault(1, SP - 8, W), "stack-overflow", LIKELY, at(SP - 8, W)),
    (fault(1, 0, ip=0), "bad-call", CERTAIN, at(0, X, ip=0)),
    (fault(1, 0x7F0000, ip=0x7F0000), "bad-call", CERTAIN, at(0x7F0000, X, ip=0x7F0000)),
    (fault(2, 0x7F0000, ip=0x7F0000), "execute-data", CERTAIN, at(0x7F0000, X, ip=0x7F0000)),
    (fault(2, 0x7F0000, W), "write-read-only", CERTAIN, at(0x7F0000, W)),
    (fault(2, 0x7F0000, R), "no-access", CERTAIN, at(0x7F0000, R)),
    (fault(2, 0x7F0000), "no-access", GUESS, at(0x7F0000)),
    (fault(4, 0x7F0000, R), "protection-key", CERTAIN, at(0x7F0000, R)),
    (fault(10, 0x7F0000), "control-flow", CERTAIN, at(0x7F0000)),
    (fault(KERNEL, 0), "non-canonical", LIKELY, at(None)),
    (fault(2, 0x7F0000, R, signal=7), "past-end-of-file", CERTAIN, at(0x7F0000, R)),
    (fault(1, 0x7F0001, R, signal=7), "misaligned", CERTAIN, at(0x7F0001, R)),
    (fault(4, 0x7F0000, signal=7), "hardware-memory", CERTAIN, at(0x7F0000)),
    (fault(1, IP, signal=8), "division", CERTAIN, at(None)),
    (fault(4, IP, signal=8), "arithmetic", CERTAIN, at(None)),
    (fault(2, IP, signal=4), "illegal-instruction", CERTAIN, at(None)),
    (fault(KERNEL, None, signal=5), "trap", CERTAIN, at(None)),
    (fault(1, IP, signal=31, syscall=110), "seccomp", CERTAIN, at(None, syscall=110)),
    (
        fault(1, IP, signal=31, syscall=110, killer=Killer(by=KilledBy.SECCOMP)),
        "seccomp",
        CERTAIN,
        at(None, syscall=110),
    ),
    (
        record(signal=31, killer=Killer(by=KilledBy.SECCOMP)),
        "seccomp",
        CERTAIN,
        Evidence(by="seccomp"),
    ),
    (fault(2, IP, signal=31, syscall=110), "refused-call", CERTAIN, at(None, syscall=110)),
    (
        record(si_code=-6, last_fault=FAULT),
        "stack-overflow",
        LIKELY,
        at(SP - 8, ip=0x401200, signal=11, handled=True),
    ),
    (record(si_code=-6), "raised", CERTAIN, gave()),
    (
        aborted(message="v: v.c:8: f: Assertion `n == 0' failed."),
        "assertion",
        CERTAIN,
        gave("v: v.c:8: f: Assertion `n == 0' failed."),
    ),
    (aborted("__assert_fail", "f"), "assertion", CERTAIN, gave()),
    (aborted("std::__glibcxx_assert_fail(char const*)", "f"), "assertion", CERTAIN, gave()),
    (aborted("check"), "abort", CERTAIN, gave()),
    (aborted(frames=None), "abort", LIKELY, gave()),
    (aborted("std::terminate()", "__cxa_throw", "f"), "uncaught-exception", CERTAIN, gave()),
    (aborted("std::terminate()", "join"), "abort", CERTAIN, gave()),
    (aborted("core::panicking::panic_fmt", "f"), "rust-panic", CERTAIN, gave()),
    (
        record(signal=signal.SIGABRT, si_code=-6, frames=[Frame(pc=1, function="runtime.throw")]),
        "go-panic",
        CERTAIN,
        gave(),
    ),
    (
        fault(2, IP, signal=4, frames=[Frame(pc=1, function="std::panicking::rust_panic")]),
        "rust-panic",
        LIKELY,
        Evidence(ip=IP, tid=700),
    ),
    (
        aborted(message="corrupted size vs. prev_size while consolidating"),
        "heap-corruption",
        CERTAIN,
        gave("corrupted size vs. prev_size while consolidating"),
    ),
    (aborted("malloc_printerr", "f"), "heap-corruption", CERTAIN, gave()),
    (
        aborted(message="*** stack smashing detected ***: terminated"),
        "buffer-overflow",
        CERTAIN,
        gave("*** stack smashing detected ***: terminated"),
    ),
    (
        record(cause=Cause.KILLED, signal=9, killer=Killer(by=KilledBy.PROCESS, **BASH)),
        "killed",
        CERTAIN,
        Evidence(by="process", **BASH),
    ),
    (record(cause=Cause.KILLED, signal=9), "killed", LIKELY, Evidence()),
    (
        record(cause=Cause.KILLED, signal=9, sender=Sender(**BASH)),
        "killed",
        CERTAIN,
        Evidence(**BASH),
    ),
    (
        record(cause=Cause.KILLED, signal=9, killer=Killer(by=KilledBy.NAMESPACE, **BASH)),
        "killed",
        CERTAIN,
        Evidence(by="pid-namespace", **BASH),
    ),
    (
        record(
            cause=Cause.KILLED,
            signal=6,
            killer=Killer(
                by=KilledBy.PROCESS,
                **BASH,
                unit_state=UnitState(result="watchdog", active="failed", sub="failed"),
            ),
        ),
        "watchdog",
        CERTAIN,
        Evidence(by="process", unit_result="watchdog", **BASH),
    ),
    (
        record(cause=Cause.OOM, oom=True, signal=9, resident_bytes=60 << 20, oom_facts=OOM),
        "out-of-memory",
        CERTAIN,
        Evidence(cgroup="/shop", limit=64 << 20, usage=63 << 20, resident=60 << 20),
    ),
    (record(signal=24, si_code=KERNEL), "cpu-limit", CERTAIN, Evidence()),
    (record(signal=25, si_code=0), "file-size-limit", CERTAIN, Evidence()),
    (record(signal=13, si_code=0), "broken-pipe", CERTAIN, Evidence()),
    (record(signal=14, si_code=KERNEL), "timer", CERTAIN, Evidence()),
    (record(signal=1, si_code=KERNEL), "terminal", CERTAIN, Evidence()),
    (record(signal=29, si_code=KERNEL), "kernel", CERTAIN, Evidence()),
    (record(killer=Killer(by=KilledBy.EXEC)), "exec-failed", CERTAIN, Evidence(by="exec")),
    (
        record(cause=Cause.EXIT, signal=None, exit_code=3),
        "exit-status",
        CERTAIN,
        Evidence(exit_code=3),
    ),
    (record(signal=None), "unknown", GUESS, Evidence()),
    (record(late=True), "unknown", GUESS, gave()),
    (record(signal=signal.SIGABRT), "unknown", GUESS, gave()),
    (
        record(signal=signal.SIGUSR1, sender=Sender(pid=700, comm="victim", uid=0)),
        "raised",
        LIKELY,
        gave(),
    ),
]


@pytest.mark.parametrize(("death", "category", "confidence", "evidence"), DIAGNOSES)
def test_a_death_and_its_diagnosis(
    death: Record, category: str, confidence: Confidence, evidence: Evidence
) -> None:
    expected = Diagnosis(category=Category(category), confidence=confidence, evidence=evidence)
    assert diagnosed(death).diagnosis == expected


def test_a_snapshot_has_no_diagnosis() -> None:
    taken = SnapshotFacts(mode="threads", method="iterator", why="asked", consistent=False)
    assert concluded(record(cause=Cause.SNAPSHOT, signal=None, snapshot=taken)).diagnosis is None


def test_a_record_from_before_there_were_diagnoses_is_still_read() -> None:
    # GIVEN what an older version stored
    old = record()
    data = encode(old)
    assert b'"diagnosis": null' in data
    # WHEN it lacks the field altogether
    without = b"".join(line for line in data.splitlines() if b'"diagnosis"' not in line)
    # THEN it is the same record
    assert decode(without) == old


def test_a_diagnosis_is_stored_and_read_again() -> None:
    known = concluded(fault(1, 0x18, R))
    assert decode(encode(known)) == known
