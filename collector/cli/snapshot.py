"""`coreward snapshot`: a core of a process that goes on."""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from collector.cli import copying
from collector.cli.choice import mode_argument
from collector.cli.cores import dying_by_exception, warn_incomplete
from collector.cli.interrupts import Check, interruptible
from collector.cli.probing import live_probe
from collector.cli.progress import progress
from collector.cli.redaction import redaction, redaction_arguments
from collector.cli.render import clean, print_json, size
from collector.elfcore.sink import ZstdWriter
from collector.errors import StoreError, StoreOfOthers, UsageError
from collector.model import Capture, SnapshotFacts, SnapshotMode
from collector.policy.types import Codec, Compress, MemoryChoice
from collector.policy.units import parse_size
from collector.probe.live import LiveProbe
from collector.snapshot.stop import Perturb
from collector.snapshot.take import Found, SnapshotRequest, take, usual_capture
from collector.snapshot.write import Core, CoreContents, in_words, write_found, write_plain

if TYPE_CHECKING:
    from collector.store.store import Store

_STDOUT = "-"
_CAPTURES = (Capture.FULL, Capture.STACKS, Capture.THREADS)


class SnapshotVerb:
    """Writes a core of a running process, which goes on after a pause of milliseconds, or without
    any. Into the store, where `info`, `bt` and `debug` find it, or to FILE; `-o -` is a stream for
    a pipe. What was done to the process is said at the end, and in the core."""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("pid", type=int, metavar="PID")
        mode_argument(
            parser,
            "threads: registers and stacks, nobody stops; nonstop: memory as well, not of one "
            "instant; full-stop: one instant (default: full-stop, as short as is possible)",
        )
        parser.add_argument(
            "--capture",
            choices=[capture.value for capture in _CAPTURES],
            help="what goes into the core (default: full; stacks in mode threads)",
        )
        parser.add_argument(
            "--no-inject",
            action="store_true",
            help="do not make the process do system calls: it stands until all is written",
        )
        parser.add_argument(
            "--perturb",
            choices=[perturb.value for perturb in Perturb],
            default=Perturb.TRANSPARENT.value,
            help="threads whose system call would return EINTR: start it again, do not stop them, "
            "or let them have it (default: transparent)",
        )
        parser.add_argument("--fpu", action="store_true", help="mode threads with FPU state")
        parser.add_argument("--max", type=_size, metavar="SIZE", help="bytes of memory at most")
        parser.add_argument(
            "--compress",
            choices=[codec.value for codec in Codec],
            help="default: zstd in a store, none in a file",
        )
        parser.add_argument("-o", "--output", metavar="FILE", help="instead of into the store")
        parser.add_argument(
            "--serve",
            metavar="unix:PATH",
            help="write nothing: answer requests for parts of the core by HTTP on that socket, "
            "until Ctrl-C; of the other options only --mode counts",
        )
        parser.add_argument(
            "--force",
            action="store_true",
            help="replace FILE if it exists; a pipe or link of others is written through",
        )
        redaction_arguments(parser)
        parser.add_argument("--json", action="store_true", help="what was done, as JSON")

    def run(self, args: argparse.Namespace) -> int:
        if args.serve is not None:
            return _serve(args)
        request = SnapshotRequest(
            mode=SnapshotMode(args.mode),
            inject=not args.no_inject,
            perturb=Perturb(args.perturb),
            extended=args.fpu,
        )
        contents = CoreContents(
            capture=Capture(args.capture) if args.capture else usual_capture(request.mode),
            memory=MemoryChoice(max=args.max),
            redact=redaction(args)(args.pid),
        )
        if contents.redact.anything:
            request = msgspec.structs.replace(request, unstaged=True)
        if args.json and args.output == _STDOUT:
            raise UsageError("--json and `-o -` both want standard output")
        with interruptible() as check, live_probe() as live:
            todo = _Todo(args.pid, request, contents, live, check)
            if args.output is None:
                return _into_store(todo, args)
            codec = Codec(args.compress or Codec.NONE)
            if args.output == _STDOUT:
                facts = _to_stdout(todo, codec)
            else:
                facts = _to_file(todo, codec, Path(args.output), force=args.force)
        if args.json:
            print_json(facts)
        else:
            tell(args.pid, facts)
        return 0


def _serve(args: argparse.Namespace) -> int:
    from collector.mount import live_core, serve  # noqa: PLC0415 (only here)

    kind, _, path = args.serve.partition(":")
    if kind != "unix" or not path:
        raise UsageError(f"--serve: unix:PATH, not {args.serve!r}")
    if args.output is not None or args.json:
        raise UsageError("--serve writes no file: without -o and --json")
    core = live_core.hold(
        args.pid, SnapshotMode(args.mode), live_core.MAX_AGE, redaction(args)(args.pid)
    )
    try:
        with dying_by_exception(), serve.served(Path(path), core) as run:
            print(f"{args.serve}: {size(core.size())}, /core", flush=True)
            run()
    finally:
        core.close()
    return 0


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def tell(pid: int, facts: SnapshotFacts) -> None:
    """Say on standard error what was done to the process."""
    print(f"process {pid}: {clean(in_words(facts))}", file=sys.stderr)


class _Todo(NamedTuple):
    """What was asked for, and with what it is done."""

    pid: int
    request: SnapshotRequest
    contents: CoreContents
    live: LiveProbe | None
    check: Check

    def take(self, fd: int, codec: Codec, staging: Path | None = None) -> SnapshotFacts:
        """To an open file or pipe. What the core lacks is said, as there is no record."""

        def write(found: Found) -> Core:
            with progress(fd, found.opened.resident):
                if codec is Codec.NONE:
                    return write_plain(found, self.contents, fd, self.check)
                return write_found(found, self.contents, ZstdWriter(fd), self.check)

        plain = fd if codec is Codec.NONE and copying.can_be_read(fd) else None
        if self.contents.redact.anything:
            plain = None
        core, facts = take(self.pid, self.request, write, self.live, staging, core=plain)
        if core.lost is not None:
            print(f"coreward: this core is truncated: {core.lost}", file=sys.stderr)
        if core.unseen:
            print(f"coreward: of this core {core.unseen}", file=sys.stderr)
        return facts


def _into_store(todo: _Todo, args: argparse.Namespace) -> int:
    # a file needs none of these
    from collector.snapshot.store_snapshot import store_snapshot  # noqa: PLC0415
    from collector.watch.door import kept_calls  # noqa: PLC0415

    compress = Compress(codec=Codec(args.compress or Codec.ZSTD))
    with _own_store(args.store) as store:
        record = store_snapshot(
            store,
            todo.pid,
            todo.request,
            todo.contents,
            todo.live,
            compress,
            todo.check,
            keep_calls=partial(kept_calls, store.path),
        )
    warn_incomplete(record)
    if args.json:
        print_json(record)
        return 0
    if record.snapshot is not None:
        tell(todo.pid, record.snapshot)
    print(f"{record.id}: {size(record.core_size)}")
    return 0


def _own_store(path: Path) -> Store:
    from collector.store.store import Store  # noqa: PLC0415

    try:
        return Store(path, create=True)
    except StoreOfOthers as error:
        if os.geteuid() == 0:
            raise
        raise StoreError(
            f"{path}: you may not write this store; `-o FILE` writes the core to a file of yours, "
            "`--store DIR` to a store of yours"
        ) from error


def _to_stdout(todo: _Todo, codec: Codec) -> SnapshotFacts:
    out = sys.stdout.fileno()
    copying.refuse_terminal(out)
    try:
        return todo.take(out, codec)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StoreError(f"stdout: cannot be written: {error.strerror}") from error


def _to_file(todo: _Todo, codec: Codec, path: Path, *, force: bool) -> SnapshotFacts:
    with copying.new_file(path, replace=force, others=force, flush=False) as fd:
        return todo.take(fd, codec, path.parent)
