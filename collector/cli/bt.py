"""`coreward bt`."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from collector.cli import render, threads
from collector.cli.choice import id_argument, json_argument, reading
from collector.cli.cores import (
    being_worked_on,
    core_of,
    plain_core,
    warn_incomplete,
    what_there_is,
)
from collector.cli.goroutines import goroutine_lines
from collector.cli.opened import bundle_of
from collector.errors import NotFound, UsageError
from collector.explain import kept_threads
from collector.explain.types import ThreadFrames
from collector.model import Frame, Goroutines, Record
from collector.store.store import Store

_TIMEOUT_S = 120.0  # somebody waits for it and can interrupt, so longer than the agent would
_MEMORY = 2 << 30


class Backtrace(msgspec.Struct, frozen=True, kw_only=True):
    """What `bt --json` prints: the dying thread's frames, innermost first."""

    id: str
    pid: int
    tid: int
    thread_name: str | None
    frames: list[Frame]


class AllBacktraces(msgspec.Struct, frozen=True, kw_only=True):
    """What `bt --all --json` prints. Thread ids are those of the process's own namespace."""

    id: str
    pid: int
    threads: list[ThreadFrames]
    lost: dict[str, str]
    goroutines: Goroutines | None = None  # of a Go program


class BtVerb:
    """Prints the backtrace of the thread that died, as it was recorded; with --all that of every
    thread, which is read from the core now, equal ones once. With --full also the variables of the
    innermost frames, and what the registers point to."""

    is_paged = True

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        id_argument(parser, or_bundle=True)
        parser.add_argument("--all", action="store_true", help="every thread")
        parser.add_argument(
            "--full", action="store_true", help="with --all: variables and registers as well"
        )
        json_argument(parser)

    def run(self, args: argparse.Namespace) -> int:
        if args.full and not args.all:
            raise UsageError("--full goes with --all: both are read from the core")
        with bundle_of(args, whole=args.all) as bundle, reading(args.store) as store:
            record = store.get(args.id)
            if args.all:
                root = None if bundle is None else bundle.sysroot
                return _all(store, record, root, full=args.full, as_json=args.json)
        if record.frames is None:
            why = record.lost.get("frames") or being_worked_on(record) or "nobody has unwound it"
            advice = what_there_is(record)
            if record.core is not None:
                advice = f"`coreward bt {record.id} --all` reads its core"
            raise NotFound(f"record {record.id} has no backtrace: {render.clean(why)}").advised(
                advice
            )
        if args.json:
            render.print_json(_backtrace(record, record.frames))
        else:
            screen = render.Screen()
            lines = [screen.red(_heading(record)), *render.frame_lines(record.frames, screen)]
            print("\n".join([*lines, *render.nameless_lines(record.frames)]))
        return 0


def _backtrace(record: Record, frames: list[Frame]) -> Backtrace:
    return Backtrace(
        id=record.id,
        pid=record.pid,
        tid=record.tid,
        thread_name=record.thread_name,
        frames=frames,
    )


def _heading(record: Record) -> str:
    name = f" `{record.thread_name}`" if record.thread_name is not None else ""
    reason = f": {record.reason}" if record.reason else ""
    return render.clean(f"{record.comm}[{record.pid}], thread{name} {record.tid}{reason}")


def _all(store: Store, record: Record, root: Path | None, *, full: bool, as_json: bool) -> int:
    """root: the folder with the process's files; None: this machine's."""
    kept = kept_threads.read(store.place(record))
    try:
        core = core_of(store, record)
    except NotFound as error:
        if full or not kept:
            raise
        lost = {"core": f"these are as they were recorded; {error}"}
        found: Sequence[ThreadFrames] = kept
        goroutines = record.goroutines
    else:
        found, goroutines, lost = _from_core(core, record, root, full=full)
        warn_incomplete(record)
    all_ = threads.with_record(found, record, kept)
    if as_json:
        render.print_json(
            AllBacktraces(
                id=record.id, pid=record.pid, threads=all_, lost=lost, goroutines=goroutines
            )
        )
        return 0
    screen = render.Screen()
    print(threads.text(all_, record, screen))
    if goroutines is not None:
        print("\n" + "\n".join(goroutine_lines(goroutines, screen)))
    for part, why in sorted(lost.items()):
        print(f"coreward: lost: {render.clean(part)}: {render.clean(why)}", file=sys.stderr)
    return 0


def _from_core(
    path: Path, record: Record, root: Path | None, *, full: bool
) -> tuple[list[ThreadFrames], Goroutines | None, dict[str, str]]:
    """All threads and goroutines as the core tells them now, and what is missing. NotFound: there
    are no threads."""
    from collector.explain.run import explain_core  # noqa: PLC0415 (only --all needs it)

    with plain_core(path) as core, _opened(root) as root_fd:
        explanation = explain_core(
            core,
            all_threads=True,
            full=full,
            root_fd=root_fd,
            timeout=_TIMEOUT_S,
            memory=_MEMORY,
        )
    lost = dict(explanation.lost)
    if record.container and "symbols" in lost:
        lost["symbols"] += "; the process was in a container, which had files of its own"
    if not explanation.threads:
        why = lost.get("threads") or lost.get("frames") or "not said why"
        raise NotFound(
            f"record {record.id}: no thread could be unwound: {render.clean(why)}"
        ).advised(f"`coreward debug {record.id}` opens its core in gdb")
    return explanation.threads, explanation.goroutines or record.goroutines, lost


@contextlib.contextmanager
def _opened(root: Path | None) -> Iterator[int | None]:
    """A descriptor of the folder, if there is one."""
    if root is None:
        yield None
        return
    fd = os.open(root, os.O_PATH | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
