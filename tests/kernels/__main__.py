"""`make kernels`: all that the product promises, tried on each kernel that the README names.

    python -m tests.kernels [--kernel 6.1 ...] [--short] [--no-tests | --only-tests | --failed]

Boots 6.1 and 6.12 one after the other, and takes this machine's kernel as it is ("host"). On each,
all scenarios with both loaders and each hand-off, and then as much of tests/system as is meant for
it. What was found is kept in build/kernels/results; docs/kernels.md is written from it once all
kernels have been tried. Takes an hour or two where processors are emulated. Exit status 1 if
anything failed, or was not as `features.py` expects it. Needs root.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from xml.etree import ElementTree

import msgspec

from tests.kernels.boot import boot
from tests.kernels.features import Cell
from tests.kernels.images import CACHE, KERNELS, fetch
from tests.kernels.prepare import ROOT, SLOWNESS, prepare
from tests.kernels.table import Result, SystemTests, write
from tests.kernels.unpack import KernelError

HOST = "host"
RESULTS = CACHE / "results"
DOCUMENT = ROOT / "docs" / "kernels.md"
LIMIT_S = 3 * 3600.0  # for one boot
MEMORY = "8G"  # of a guest: some tests let 2 GiB die, and /tmp is memory
SCENARIOS = [
    *("--scope", "agent", "live", "kernel", "--loader", "core", "bcc"),
    *("--handoff", "pipe", "none", "socket"),  # the doctor, at the end, is compared with all
]
SHORT = ["--scope", "agent", "--loader", "core", "--handoff", "pipe"]
# As much of tests/system as asks something of the kernel.
TESTS = (
    *("test_probe_deaths", "test_probe_iterators", "test_probe_pins", "test_hold_handoff"),
    *("test_hold_pin", "test_native", "test_agent_victims", "test_snapshot_modes"),
    *("test_live_fork", "test_live_precopy", "test_live_stop", "test_live_stop_rolling"),
    *("test_live_inject", "test_sample", "test_cli_doctor", "test_watch"),
)


class Machine:
    """A kernel on which commands can be run; `out` is a folder that they write to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.out = RESULTS / f"{name}.out"
        self.out.mkdir(parents=True, exist_ok=True)

    def run(self, *words: str) -> int | None:
        """A Python module with its arguments, in which `{out}` stands for the folder. Its exit
        status; None if the guest ended without one."""
        command = [sys.executable, "-m", *words]
        if self.name == HOST:
            command = [word.replace("{out}", str(self.out)) for word in command]
            return subprocess.run(command, cwd=ROOT, check=False).returncode
        command = [word.replace("{out}", "/mnt/out") for word in command]
        for attempt in (1, 2):
            result = boot(
                *(fetch(self.name), command),
                folder=ROOT,
                out=self.out,
                limit_s=LIMIT_S,
                memory=MEMORY,
                env={"COREWARD_TEST_SLOWNESS": str(SLOWNESS)},
                live=sys.stdout.buffer,
            )
            if problem := result.problem(LIMIT_S):
                print(problem, file=sys.stderr)
            # An emulated processor now and then runs half of an instruction that the other one is
            # patching (seen on 6.12, twice, in code of the scheduler and the allocator).
            if result.status is not None or result.timed_out or attempt == 2:
                break
            print("once more", file=sys.stderr)
        return result.status


def main() -> int:
    args = _arguments()
    prepare()
    good = True
    try:
        for name in args.kernel:
            print(f"=== {name}", flush=True)
            machine = Machine(name)
            if args.only_tests or args.failed:
                good = try_tests(machine, failed=args.failed) and good
            else:
                good = try_kernel(machine, short=args.short, tests=args.tests) and good
    except KernelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    results = [_load(name) for name in (*KERNELS, HOST)]
    known = [result for result in results if result is not None]
    if not args.short and len(known) == len(results):
        write(DOCUMENT, known)
        print(f"{DOCUMENT.relative_to(ROOT)} is written")
    return 0 if good else 1


def try_tests(machine: Machine, *, failed: bool) -> bool:
    """Whether the system tests are as they should be there; what the scenarios found stays.

    failed: only those that failed the last time.
    """
    known = _load(machine.name)
    if known is None:
        raise KernelError(f"{machine.name}: the scenarios were not tried there yet")
    before = known.tests
    if failed and before is not None:
        again = [f"tests/system/{name.replace('::', '.py::', 1)}" for name in before.failed]
        tested = _system_tests(machine, again) if again else before
        passed = before.passed + tested.passed if again else before.passed
        tested = msgspec.structs.replace(tested, passed=passed, skipped=before.skipped)
    else:
        tested = _system_tests(machine)
    _save(machine.name, msgspec.structs.replace(known, tests=tested))
    _tell(tested)
    return not tested.failed


def try_kernel(machine: Machine, *, short: bool, tests: bool) -> bool:
    """Whether all is as it should be there."""
    file = machine.out / "cells.json"
    file.unlink(missing_ok=True)
    words = SHORT if short else SCENARIOS
    status = machine.run("tests.kernels.scenarios", *words, "--out", "{out}/cells.json")
    cells = msgspec.json.decode(file.read_bytes(), type=list[Cell]) if file.exists() else []
    tested = _system_tests(machine) if tests and not short else None
    if cells and not short:
        release = cells[0].release
        result = Result(
            name=".".join(release.split(".")[:2]),
            release=release,
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
            cells=cells,
            tests=tested,
        )
        _save(machine.name, result)
    surprising = [cell for cell in cells if cell.surprising]
    print(f"--- {machine.name}: {len(cells)} cells, {len(surprising)} not as expected")
    for cell in surprising:
        print(f"{cell.loader} {cell.handoff} {cell.feature}: {cell.state}, {cell.detail}")
    if tested is not None:
        _tell(tested)
    return status == 0 and bool(cells) and not (tested and tested.failed)


def _system_tests(machine: Machine, files: Sequence[str] = ()) -> SystemTests:
    report = machine.out / "tests.xml"
    report.unlink(missing_ok=True)
    files = files or [f"tests/system/{name}.py" for name in TESTS]
    status = machine.run(
        "pytest", "-v", "-p", "no:cacheprovider", "--junitxml={out}/tests.xml", *files
    )
    if not report.exists():
        return SystemTests(passed=0, failed=(f"all: pytest ended with {status}",), skipped={})
    passed, failed, skipped = 0, [], Counter[str]()
    for case in ElementTree.parse(report).iter("testcase"):
        if (skip := case.find("skipped")) is not None:
            skipped[skip.get("message", "")] += 1
        elif case.find("failure") is not None or case.find("error") is not None:
            failed.append(f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}")
        else:
            passed += 1
    return SystemTests(passed=passed, failed=tuple(failed), skipped=dict(skipped))


def _tell(tested: SystemTests) -> None:
    print(f"{tested.passed} system tests passed; failed: {', '.join(tested.failed) or 'none'}")


def _save(name: str, result: Result) -> None:
    (RESULTS / f"{name}.json").write_bytes(msgspec.json.encode(result))


def _load(name: str) -> Result | None:
    file = RESULTS / f"{name}.json"
    return msgspec.json.decode(file.read_bytes(), type=Result) if file.exists() else None


def _arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.kernels", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--kernel", nargs="+", default=[*KERNELS, HOST], choices=[*KERNELS, HOST])
    add("--short", action="store_true", help="one loader, one hand-off; nothing is kept")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--no-tests", dest="tests", action="store_false", help="without tests/system")
    only.add_argument("--only-tests", action="store_true", help="tests/system, and nothing else")
    only.add_argument("--failed", action="store_true", help="what failed of them the last time")
    args = parser.parse_args(words)
    if os.geteuid() != 0:
        parser.error("needs root")
    return args


if __name__ == "__main__":
    sys.exit(main())
