"""`python -m bench.verbs`: what the verbs that look into a store cost, in one of 100,000 records.

    python -m bench.verbs DIR --records 100000 --runs 7

The store is made if DIR is not there: 300 services, 400 bugs with ten times as many stacks, three
builds of each program, twenty hosts. Then each verb is run as a person would, and its CPU time is
told, start of the interpreter included. No process is crashed for it, so it runs anywhere.
"""

from __future__ import annotations

import argparse
import datetime
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

from msgspec.structs import replace

from collector.circumstances import HostFacts
from collector.model import Capture, Cause, Frame, Outcome, Record
from collector.signature.compose import from_stack, signed
from collector.signature.rules import Rules, rules
from collector.signature.stack import stack_key
from collector.signature.types import SignatureRules
from collector.store.store import Store

_BUGS = 400
_SERVICES = 300
_BATCH = 500  # deaths that are put together
_SPREAD_S = 90 * 86400  # the deaths are of so many days
_ROOT = Path(__file__).parents[1]
VERBS = (
    ("list",),
    ("list", "-n", "1000"),
    ("list", "--signal", "SEGV"),
    ("list", "--cause", "exit"),
    ("list", "--unit", "s007.service"),
    ("list", "--unit", "s00*"),
    ("list", "--exe", "*/s007"),
    ("list", "--comm", "s007"),
    ("list", "--since", "2h"),
    ("list", "--since", "2026-01-01", "--signal", "ABRT"),
    ("list", "--signature", "latest"),
    ("list", "--kept"),
    ("info",),
    ("bt",),
    ("signatures",),
    ("signature", "latest"),
    ("last", "--unit", "s007.service"),
    ("top", "--once"),
)


def death(number: int, count: int, now: datetime.datetime, in_force: Rules) -> Record:
    """The death of this number, the same each time but for its moment."""
    chance = random.Random(number)
    bug = min(int(chance.expovariate(1 / 60)), _BUGS - 1)  # few make many of the deaths
    service = (bug * 7 + chance.randrange(3)) % _SERVICES
    name, build = f"s{service:03}", f"{service:08x}{chance.randrange(3):032x}"
    exe = f"/usr/lib/shop/bin/{name}"
    way = [f"f{bug}_{n}" for n in range(3)] + [f"w{bug % 17}_{chance.randrange(10)}", "serve"]
    exits = bug % 20 == 19
    signal, signal_name = (6, "SIGABRT") if bug % 3 else (11, "SIGSEGV")
    moment = now - datetime.timedelta(seconds=(count - 1 - number) * _SPREAD_S / count)
    record = Record(
        id=f"{chance.getrandbits(64):016x}",
        time=moment,
        pid=number + 2,
        tid=number + 2,
        cause=Cause.EXIT if exits else Cause.SIGNAL,
        comm=name,
        start_ns=number,
        exe=exe,
        cmdline=[exe, "--port", str(8000 + service)],
        uid=1000 + service,
        gid=1000,
        unit=f"{name}.service",
        cgroup=f"/system.slice/{name}.service",
        container=bool(service % 2),
        signal=None if exits else signal,
        signal_name=None if exits else signal_name,
        si_code=None if exits else 1,
        exit_code=1 if exits else None,
        threads=chance.choice((1, 4, 16, 17, 64)),
        capture_wanted=Capture.FULL,
        outcome=Outcome.RECORDED,
        reason=f"{signal_name} in `f{bug}_0` ({name}.c:{bug})",
        frames=[
            Frame(
                pc=0x55D0C0DE1234 + n, function=f, offset=n, module=exe, build_id=build, line=n + 1
            )
            for n, f in enumerate((*way, "main", "_start"))
        ],
        host=HostFacts(
            name=f"web{chance.randrange(20):02}",
            kernel=f"6.{chance.randrange(1, 4)}.0",
            cpu=chance.choice(("Xeon 8175M", "EPYC 7571")),
        ),
        attributes={"RELEASE": f"2.{chance.randrange(8)}"},
    )
    key = stack_key(record.frames or [], in_force)
    return signed(record if exits else replace(record, signature=from_stack(key)))


def fill(folder: Path, count: int) -> None:
    """Put so many deaths as an agent puts them."""
    in_force, now = rules(SignatureRules()), datetime.datetime.now(datetime.UTC)
    with Store(folder, create=True) as store:
        for begin in range(0, count, _BATCH):
            with store.batch():
                for number in range(begin, min(begin + _BATCH, count)):
                    store.put(death(number, count, now, in_force))
            print(f"\r{min(begin + _BATCH, count):,} deaths", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def cpu_ms(folder: Path, words: tuple[str, ...]) -> tuple[float, float]:
    """CPU and elapsed time of one run of the verb, whose output goes nowhere."""
    begun = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-m", "collector", *words],
        stdout=subprocess.DEVNULL,
        cwd=_ROOT,
        env={**os.environ, "COREWARD_STORE": str(folder.absolute())},
    )
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"coreward {' '.join(words)} ended with status {child.returncode}")
    return (used.ru_utime + used.ru_stime) * 1e3, (time.monotonic() - begun) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.verbs", description="What the verbs cost.")
    parser.add_argument("folder", type=Path, help="of the store; made if it is not there")
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--verb", action="append", help="only this one, with its arguments")
    args = parser.parse_args()
    if not args.folder.exists():
        fill(args.folder, args.records)
    verbs = [tuple(words.split()) for words in args.verb or ()] or [("--version",), *VERBS]
    width = max(len(" ".join(words)) for words in verbs)
    print(f"{'coreward':<{width}}    CPU ms: median  least   most    elapsed: median")
    for words in verbs:
        shots = [cpu_ms(args.folder, words) for _ in range(args.runs)]
        cpu = sorted(used for used, _ in shots)
        elapsed = statistics.median(took for _, took in shots)
        print(
            f"{' '.join(words):<{width}}    {statistics.median(cpu):14.0f}"
            f"{cpu[0]:7.0f}{cpu[-1]:7.0f}"
            f"{elapsed:19.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
