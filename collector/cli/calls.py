"""`coreward calls`, and the part of `info` that shows the last ones."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import msgspec

from collector.cli import render
from collector.cli.choice import id_argument, json_argument, reading
from collector.cli.cores import calls_of
from collector.errors import NotFound
from collector.model import Record
from collector.trace import Call, Notation, Symbols, call_name
from collector.trace.records import json_call
from collector.watch.kept import KeptCalls, KeptThread

_LAST = 8  # that `info` shows


class CallsVerb:
    """Shows the last system calls of the threads of a process that a `trace` rule of the policy
    named, and that has died or was snapshot: the oldest first, with the seconds before."""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        id_argument(parser)
        parser.add_argument("--thread", type=int, metavar="TID", help="only of this thread")
        json_argument(parser)

    def run(self, args: argparse.Namespace) -> int:
        with reading(args.store) as store:
            record = store.get(args.id)
            kept = calls_of(store, record)
        threads: Sequence[KeptThread] = kept.threads
        if args.thread is not None:
            one = kept.thread(args.thread)
            if one is None:
                known = ", ".join(str(thread.tid) for thread in kept.threads[:20])
                raise NotFound(f"record {record.id}: thread {args.thread} kept none; {known} did")
            threads = [one]
        if args.json:
            facts = msgspec.to_builtins(record.calls)
            render.print_json({**facts, "lost": kept.lost, "threads": _json(threads)})
            return 0
        blocks = [_block(thread, kept) for thread in threads]
        print("\n\n".join("\n".join(block) for block in [*blocks, lost_lines(kept)] if block))
        return 0


def last_calls(record: Record, kept: KeptCalls) -> list[str]:
    """Those of the thread that died; empty if it has none."""
    thread = kept.thread(record.tid)
    return [] if thread is None else _lines(thread.calls[-_LAST:], kept)


def lost_lines(kept: KeptCalls) -> list[str]:
    """What is missing of them."""
    return [f"  lost {render.clean(part)}: {render.clean(why)}" for part, why in kept.lost.items()]


def _block(thread: KeptThread, kept: KeptCalls) -> list[str]:
    more = thread.made - len(thread.calls)
    before = f", {more} before them" if more > 0 else ""
    lost = f", {thread.lost} are lost" if thread.lost else ""
    name = render.clean(thread.comm)
    title = f"thread {thread.tid} {name}: {len(thread.calls)} calls{before}{lost}"
    return [title, *_lines(thread.calls, kept)]


def _lines(calls: Sequence[Call], kept: KeptCalls) -> list[str]:
    notation = Notation(Symbols.built())
    return [f"  {_when(call, kept)}  {notation.call(call)}{_stay(call, kept)}" for call in calls]


def _when(call: Call, kept: KeptCalls) -> str:
    begun = call.enter_ns if call.enter_ns is not None else call.exit_ns
    return "?".rjust(12) if begun is None else f"{(begun - kept.time_ns) / 1e9:12.6f}"


def _stay(call: Call, kept: KeptCalls) -> str:
    """How long it had been in a call that did not return."""
    if call.result is not None or call.enter_ns is None:
        return ""
    until = call.exit_ns if call.exit_ns is not None else kept.time_ns
    return f" (it did not return in {(until - call.enter_ns) / 1e9:.6f} s)"


def _json(threads: Sequence[KeptThread]) -> list[dict[str, object]]:
    notation = Notation(Symbols.built())
    return [
        {
            "tid": thread.tid,
            "comm": thread.comm,
            "made": thread.made,
            "lost": thread.lost,
            "calls": [
                json_call(call) | {"name": call_name(call), "text": notation.call(call)}
                for call in thread.calls
            ],
        }
        for thread in threads
    ]
