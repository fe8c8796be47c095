"""`coreward trace`."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import TextIO

from collector.cli.choice import parsed
from collector.errors import CorewardError, ProbeError, ProcessGone, UsageError
from collector.policy.units import parse_size
from collector.store.encoding import json_line
from collector.trace import filter as wanted_calls
from collector.trace.command import Command
from collector.trace.layout import MAX_TEXT, CallEvent, Event
from collector.trace.notation import Notation
from collector.trace.output import Stream
from collector.trace.records import json_event
from collector.trace.summary import Summary
from collector.trace.symbols import Symbols
from collector.trace.tracer import RING_BYTES, Rule, Tracer
from collector.trace.units import unit_groups, unit_pids

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_UNFINISHED_NS = 200_000_000  # of a call that is shown although it has not returned
_LOOK = 0.25  # seconds between two looks at who is in a call, or in a unit


class TraceVerb:
    """Shows the system calls, signals and ends of processes and of all that descends from them, in
    the notation of strace, without stopping them. `coreward trace -- COMMAND` starts a command and
    shows it from its first instruction on; its exit status is passed on."""

    passes_on = True

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("pids", nargs="*", type=int, metavar="PID")
        parser.add_argument("--unit", metavar="NAME", help="all processes of a systemd unit")
        parser.add_argument(
            "-e",
            dest="expression",
            metavar="trace=SET",
            help="only these calls: names, %%file, %%process, %%network, %%desc, %%memory, "
            "%%signal, %%ipc, /REGEX; ! before them: all others",
        )
        parser.add_argument(
            "-c", dest="summary", action="store_true", help="count calls, show the sums at the end"
        )
        parser.add_argument("-o", dest="file", metavar="FILE", help="write there, not to stderr")
        parser.add_argument("-t", dest="times", action="store_true", help="with the time of day")
        parser.add_argument("--json", action="store_true", help="one JSON object for each event")
        parser.add_argument(
            "--strings",
            type=int,
            default=0,
            metavar="N",
            help=f"copy up to N bytes (at most {MAX_TEXT}) of paths, arguments and buffers; "
            "default: none, addresses are shown",
        )
        parser.add_argument(
            "--buffer",
            default=f"{RING_BYTES >> 20}MiB",
            metavar="SIZE",
            help="for events that are not read yet, a power of two; default: %(default)s",
        )
        mode = parser.add_mutually_exclusive_group()
        mode.add_argument(
            "--lossy",
            action="store_true",
            help="events that have no room are lost, and counted where that was (default)",
        )
        mode.add_argument(
            "--wait", action="store_true", help="processes are stopped until their events are read"
        )

    def run(self, args: argparse.Namespace) -> int:
        if bool(args.pids) + bool(args.unit) + bool(args.passed_on) != 1:
            raise UsageError("trace PID..., or --unit NAME, or -- COMMAND ...: one of them")
        expression = args.expression
        rule = Rule(
            strings=args.strings,
            wait=args.wait,
            wanted=wanted_calls.parse(expression) if expression else wanted_calls.EVERYTHING,
        )
        ring = parsed("--buffer", parse_size, args.buffer)
        if os.geteuid() != 0:
            raise ProbeError("trace needs root: the kernel lets nobody else load its programs")
        with contextlib.ExitStack() as opened:
            out = _output(opened, args.file)
            tracer = opened.enter_context(Tracer(rule, ring=ring))
            if args.wait:
                opened.enter_context(tracer.resumed_at_death())
            return _Run(tracer, args, out).run()


def _output(opened: contextlib.ExitStack, file: str | None) -> TextIO:
    if file is None:
        return sys.stderr
    try:
        return opened.enter_context(open(file, "w", encoding="utf-8", errors="backslashreplace"))
    except OSError as error:
        raise CorewardError(f"-o {file}: {error.strerror}") from error


class _Run:
    """One trace, from its begin to its end."""

    def __init__(self, tracer: Tracer, args: argparse.Namespace, out: TextIO) -> None:
        self._tracer = tracer
        self._args = args
        self._out = out
        self._notation = Notation(Symbols.built())
        self._stream = Stream(
            self._notation,
            out.write,
            times=args.times,
            numbered=args.file is not None or len(args.pids) > 1 or bool(args.unit),
        )
        self._summary = Summary()
        self._command: Command | None = None
        self._groups = unit_groups(args.unit) if args.unit else []
        self._interrupts: list[int] = []

    def run(self) -> int:
        """The exit status."""
        with self._interruptible():
            self._begin()
            status = self._follow()
        self._end()
        return status

    def _begin(self) -> None:
        if self._args.passed_on:
            self._command = Command(self._args.passed_on)
            self._tracer.attach(self._command.pid, from_exec=True)
            self._command.go()
        problems = []
        for pid in dict.fromkeys([*self._args.pids, *sorted(unit_pids(self._groups))]):
            try:
                for found, threads in self._tracer.attach_tree(pid).items():
                    print(f"process {found} attached: {threads} threads", file=sys.stderr)
            except ProcessGone as error:
                problems.append(error)
        sys.stderr.flush()
        if problems and not self._tracer.has_threads():
            raise problems[0]
        for problem in problems:
            print(f"coreward: {problem}", file=sys.stderr)

    def _follow(self) -> int:
        """Show events until nobody is left, or a signal ends it."""
        looked = time.monotonic()
        while self._tracer.has_threads() and not self._interrupted():
            quiet = True
            for event in self._tracer.read(0.01):
                quiet = False
                self._show(event)
                if self._interrupted():
                    break
            if time.monotonic() - looked > _LOOK:
                looked = time.monotonic()
                self._look(quiet)
            if quiet:
                self._out.flush()
        for event in self._tracer.rest():
            self._show(event)
        if self._command is not None and not (self._interrupted() and not self._command.ended()):
            return self._command.wait()
        return 128 + self._interrupts[0] if self._interrupts else 0

    def _look(self, quiet: bool) -> None:
        """What is no event: calls that take long, processes that are new in a unit, silent ends."""
        for pid in unit_pids(self._groups):
            if not self._tracer.is_traced(pid):
                with contextlib.suppress(ProcessGone):
                    self._tracer.attach(pid)
        if not quiet or self._args.summary or self._args.json:
            return
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._tracer.check()
        self._stream.show_present(self._tracer.present(), now, _UNFINISHED_NS)

    def _show(self, event: Event) -> None:
        if self._args.summary:
            if isinstance(event, CallEvent):
                self._summary.add(event.call)
        elif self._args.json:
            self._out.write(json_line(json_event(event, self._notation)))
        else:
            self._stream.show(event)

    def _end(self) -> None:
        if self._args.summary:
            if self._args.json:
                self._out.write(json_line(self._summary.rows()))
            else:
                self._out.write("\n".join(self._summary.lines()) + "\n")
        self._out.flush()
        lost = self._tracer.losses()
        said = [
            f"{lost.events} events, {lost.calls} of them system calls" if lost.events else "",
            f"{lost.untraced} children that could not be followed" if lost.untraced else "",
            f"{lost.unnamed} ends of threads" if lost.unnamed else "",
            f"{lost.missed} signals that interrupted their own record" if lost.missed else "",
        ]
        if any(said):
            print(f"coreward: lost: {'; '.join(filter(None, said))}", file=sys.stderr)

    # -- signals -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """The first signal goes to the command if there is one; the trace ends with it, or with the
        second signal. Without a command the first ends the trace."""

        def note(number: int, _frame: FrameType | None) -> None:
            self._interrupts.append(number)
            if self._command is not None and len(self._interrupts) == 1:
                self._command.send(number)

        heard = [n for n in _SIGNALS if signal.getsignal(n) != signal.SIG_IGN]
        before = {number: signal.signal(number, note) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _interrupted(self) -> bool:
        return len(self._interrupts) > (1 if self._command is not None else 0)
