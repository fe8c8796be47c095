"""`python -m bench`: measure Coreward beside its peers, and print the tables."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

import msgspec

from bench import (
    armed,
    crashes,
    killed,
    listing,
    machine,
    overhead,
    pulled,
    report,
    rest,
    snapshots,
    soak,
    storm,
    takers,
    tracing,
    writing,
)
from bench.cases import CASES, QUICK, QUICK_ROUNDS
from bench.model import Result
from bench.relayed import Minicoredumper, SystemdCoredump
from bench.snapshots import LIVE_CASES, QUICK_LIVE, THREADS_CASE

OTHERS = ("rest", "write", "bpf", "trace", "storm", "armed", "mount", "dumpers")
ALONE = ("killed", "soak")  # minutes each, and only if asked for
SLOW = (SystemdCoredump, Minicoredumper)  # a storm would take them minutes to work off
SNAPSHOTS = "snapshots"  # all cases of them


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line; `cases` are names, all that are wanted."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    live = [case.name for case in LIVE_CASES]
    crashing = [case.name for case in CASES]
    parser.add_argument(
        "--quick", action="store_true", help="fewer cases and runs: under three minutes"
    )
    parser.add_argument(
        "--case",
        action="append",
        choices=[*crashing, *live, *OTHERS, *ALONE, SNAPSHOTS],
        dest="cases",
        help="only this one; can be given several times",
    )
    parser.add_argument("--peer", action="append", dest="peers", help="only peers named so")
    parser.add_argument("--rounds", type=int, help="at most this many rounds of each case")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples to FILE")
    parser.add_argument(
        "--crashes", type=int, default=killed.CRASHES, help="of `killed` (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, help="of `killed`: when agents are killed")
    parser.add_argument(
        "--minutes", type=float, default=soak.MINUTES, help="of `soak` (default: %(default)g)"
    )
    args = parser.parse_args(words)
    if args.cases is None:
        args.cases = [*QUICK, *QUICK_LIVE] if args.quick else [*crashing, *live]
        args.cases += OTHERS
    elif SNAPSHOTS in args.cases:
        args.cases += live
    if args.rounds is None and args.quick:
        args.rounds = QUICK_ROUNDS
    return args


def main() -> int:
    args = arguments()
    if os.geteuid() != 0:
        print("the benchmark needs root: it changes how the kernel dumps core", file=sys.stderr)
        return 1
    begun = time.monotonic()

    def say(what: str) -> None:
        print(f"[{time.monotonic() - begun:6.1f} s] {what}", file=sys.stderr, flush=True)

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # report what there is, too
    result = Result(machine=machine.facts())

    def wanted(name: str) -> bool:
        return not args.peers or any(word in name for word in args.peers)

    peers = [peer for peer in crashes.PEERS if wanted(peer.name)]
    live = [taker for taker in takers.TAKERS if wanted(taker.name)]
    try:
        run(args, result, peers, live, say)
    except KeyboardInterrupt:
        result.notes.append("interrupted: not all was measured")
    report.show(result, peers, live)
    if args.json:
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(result)))
    return 0


def run(
    args: argparse.Namespace,
    result: Result,
    peers: list[crashes.Peer],
    live: list[takers.Taker],
    say: crashes.Say,
) -> None:
    """Measure what was asked for."""
    if "bpf" in args.cases:
        result.figures += overhead.measure(10 if args.quick else 30, say)
    if "trace" in args.cases:
        figures, table = tracing.measure(5 if args.quick else args.rounds or 11, say)
        result.figures += figures
        result.tables.append(table)
    if "rest" in args.cases:
        result.figures += rest.measure(rest.QUICK_IDLE_S if args.quick else rest.IDLE_S, say)
    if "write" in args.cases:
        result.figures += writing.measure(*((1024, 2) if args.quick else (2048, 5)), say)
    if "storm" in args.cases:
        result.figures += storm.measure([p for p in peers if not isinstance(p, SLOW)], say)
    if "armed" in args.cases:
        result.figures += armed.measure(args.rounds or armed.ROUNDS, say)
    if "mount" in args.cases:
        result.figures += pulled.mounted(*((256, 2) if args.quick else (2048, 3)), say)
    if "dumpers" in args.cases:
        result.figures += pulled.asked(2 if args.quick else args.rounds or 5, say)
    if "killed" in args.cases:
        result.figures += killed.measure(peers, killed.Run(args.crashes, args.seed), say)
    if "soak" in args.cases:
        figures, table = soak.measure(args.minutes, say)
        result.figures += figures
        result.tables.append(table)
    cases = [case for case in CASES if case.name in args.cases]
    crashes.compare(cases, peers, args.rounds, result, say)
    living = [case for case in LIVE_CASES if case.name in args.cases]
    snapshots.compare(living, live, args.rounds, result, say)
    if THREADS_CASE in living:
        result.figures += listing.measure(THREADS_CASE, say)


if __name__ == "__main__":
    sys.exit(main())
