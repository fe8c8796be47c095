"""`coreward sample`."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import msgspec

from collector.cli import places, render
from collector.cli.choice import json_argument, parsed
from collector.errors import ProbeError, ProcessError, Stalled, UsageError
from collector.introspect import LiveProbe, Process, ProcessIdentity, open_live
from collector.linux.stall import with_stall_guard
from collector.policy.units import parse_duration, parse_size
from collector.probe.stacks import MAX_STACK
from collector.sample.report import VERSION, ProcessReport, SampleReport, report_of
from collector.sample.ring import SampleRing
from collector.sample.sampler import STACK, Sampler

_MEMORY = 256 << 20  # bytes for the samples of all processes
_MAX_SAMPLES = 100_000
_T = TypeVar("_T")
_UNWINDING_S = 120.0  # of each process
_SHORTEST = 0.01  # seconds between two samples


class SampleVerb:
    """Watches where the threads of live processes are, without stopping them: state, system call
    or wait channel, time on a CPU, and the user stack of every thread, again and again. Ctrl-C
    ends it and shows what there is. Other users than root see their own processes."""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("pids", nargs="+", type=int, metavar="PID")
        parser.add_argument("--every", default="1s", metavar="TIME", help="default: 1s")
        parser.add_argument(
            "--for", dest="span", default="60s", metavar="TIME", help="default: 60s"
        )
        parser.add_argument(
            "--stack",
            default=f"{STACK >> 10}KiB",
            metavar="SIZE",
            help=f"of each thread, at most {MAX_STACK >> 10}KiB; default: {STACK >> 10}KiB",
        )
        parser.add_argument("--stacks", action="store_true", help="also print whole stacks")
        json_argument(parser)

    def run(self, args: argparse.Namespace) -> int:
        every = parsed("--every", parse_duration, args.every)
        span = parsed("--for", parse_duration, args.span)
        stack = parsed("--stack", parse_size, args.stack)
        if every < _SHORTEST:
            raise UsageError(f"--every {args.every}: at least {_SHORTEST * 1000:.0f}ms")
        if not 0 < stack <= MAX_STACK:
            raise UsageError(f"--stack {args.stack}: from 1 to {MAX_STACK} bytes")
        count = int(span / every + 1e-9) + 1
        if count > _MAX_SAMPLES:
            raise UsageError(
                f"{count} samples are too many: --every and --for allow {_MAX_SAMPLES}"
            )
        with contextlib.ExitStack() as opened:
            watch = _Watch(args.pids, count, stack, opened)
            interrupted = watch.run(every, count)
            report = SampleReport(
                version=VERSION,
                every_s=every,
                interrupted=interrupted,
                processes=watch.reports(),
            )
        _print(report, as_json=args.json, stacks=args.stacks)
        return 0


class _Target(msgspec.Struct):
    """One process that is sampled."""

    sampler: Sampler
    identity: ProcessIdentity
    ended: bool = False


def _look(process: Process, work: Callable[[], _T]) -> _T:
    return with_stall_guard(lambda: process.pid, work)


class _Watch:
    """The processes, and the taking of their samples."""

    def __init__(
        self, pids: list[int], count: int, stack: int, opened: contextlib.ExitStack
    ) -> None:
        """ProcessError if not one of them can be sampled; else the others are named on stderr."""
        wanted = list(dict.fromkeys(pids))
        probe = _probe(opened)
        problems: list[ProcessError] = []
        self.targets: list[_Target] = []
        for pid in wanted:
            try:
                process = opened.enter_context(Process(pid, probe=probe))
                ring = SampleRing(count, _MEMORY // len(wanted))
                sampler = opened.enter_context(Sampler(process, ring, stack))
                identity = _look(process, process.identity)
                _look(process, sampler.take)
                self.targets.append(_Target(sampler, identity))
            except ProcessError as error:
                problems.append(error)
        if not self.targets:
            raise problems[0]
        for problem in problems:
            print(f"coreward: {render.clean(problem)}", file=sys.stderr)

    def run(self, every: float, count: int) -> bool:
        """Take the samples that are left; whether Ctrl-C ended it."""
        progress = _Progress(count)
        start = time.monotonic()
        try:
            number = 1
            while number < count and self._wait_until(start + number * every):
                for target in self._alive():
                    self._take(target)
                progress.show(number + 1, self.targets)
                number = max(number, int((time.monotonic() - start) / every)) + 1
        except KeyboardInterrupt:
            return True
        finally:
            progress.clear()
        return False

    def _alive(self) -> list[_Target]:
        return [target for target in self.targets if not target.ended]

    def _wait_until(self, deadline: float) -> bool:
        """Whether a process is left at that time."""
        while alive := self._alive():
            poll = select.poll()
            ends = {target.sampler.process.fileno(): target for target in alive}
            for fd in ends:
                poll.register(fd, select.POLLIN)
            left = deadline - time.monotonic()
            if left <= 0:
                return True
            for fd, _ in poll.poll(left * 1000):
                ends[fd].ended = True
        return False

    def _take(self, target: _Target) -> None:
        try:
            _look(target.sampler.process, target.sampler.take)
        except Stalled as error:
            target.ended = True  # one thread that waits is enough
            target.sampler.lost["samples"] = str(error)
        except ProcessError as error:
            target.ended = not target.sampler.process.alive
            if not target.ended:
                target.sampler.lost["samples"] = str(error)

    def reports(self) -> list[ProcessReport]:
        with _note("unwinding ..."):
            return [self._report(target) for target in self.targets]

    def _report(self, target: _Target) -> ProcessReport:
        sampler = target.sampler
        found = sampler.backtraces(_UNWINDING_S)
        with contextlib.suppress(ProcessError):
            process = sampler.process
            target.identity = _look(process, process.identity)  # it may have become another program
        lost = {**sampler.lost, **found.lost}
        if sampler.process.no_clock is not None:
            lost["running"] = sampler.process.no_clock
        if sampler.ring.dropped:
            lost["oldest"] = f"{sampler.ring.dropped} samples that did not fit into memory"
        return report_of(
            target.identity, sampler.ring.samples, found.frames, ended=target.ended, lost=lost
        )


def _probe(opened: contextlib.ExitStack) -> LiveProbe | None:
    if os.geteuid() != 0:
        return None
    try:
        return opened.enter_context(open_live())
    except ProbeError:
        return None  # each process tries for itself, and says why not


def _print(report: SampleReport, *, as_json: bool, stacks: bool) -> None:
    if as_json:
        render.print_json(report)
        return
    screen = render.Screen()
    blocks = [places.lines(process, screen, stacks=stacks) for process in report.processes]
    print("\n\n".join("\n".join(block) for block in blocks))
    for process in report.processes:
        for part, why in sorted(process.lost.items()):
            pid = process.process.key.pid
            print(f"coreward: {pid}: lost: {part}: {render.clean(why)}", file=sys.stderr)


@contextlib.contextmanager
def _note(text: str) -> Iterator[None]:
    """Say on a terminal what takes a while."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
    yield
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


class _Progress:
    """One line on a terminal; nothing anywhere else."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._on = sys.stderr.isatty()

    def show(self, number: int, targets: list[_Target]) -> None:
        if not self._on:
            return
        last = [target.sampler.ring.samples[-1] for target in targets if len(target.sampler.ring)]
        threads = [thread for sample in last for thread in sample.threads]
        running = sum(thread.state == "R" for thread in threads)
        text = f"sample {number} of {self._count}: {len(threads)} threads, {running} running"
        print(f"\r\x1b[K{text} (Ctrl-C ends)", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._on:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
