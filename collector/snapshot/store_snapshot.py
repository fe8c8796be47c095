"""A snapshot into the store: its core, its record, its explanation. Used by the verb and the agent.

Each snapshot has an id of its own. It is on record once its core is complete; if it fails, nothing
stays.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import itertools
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from collector.capture.core_file import FILL, core_name, core_writer, write_explain_core
from collector.capture.image import lost_names
from collector.capture.job import MAX_EXPLAIN_CORE
from collector.capture.space import SpaceWatch, free_bytes, unseen
from collector.elfcore.types import Prot
from collector.errors import StoreError
from collector.explain.facts import with_explanation
from collector.explain.reason import concluded
from collector.explain.run import explain_core
from collector.heap.run import heap_of_core, with_heap
from collector.heap.types import HeapReport
from collector.linux.ancestry import stat_of, with_ancestors
from collector.linux.atomic import atomic_file
from collector.linux.bounded import bounded_file
from collector.linux.filesystems import own_devices
from collector.linux.host import age_s, read_host
from collector.linux.open_files import MOST, open_files
from collector.model import CallsFacts, Capture, Cause, Outcome, ProcessKey, Record, SnapshotFacts
from collector.policy.facts import facts_of_living
from collector.policy.types import Compress
from collector.policy.units import show_size
from collector.probe.live import LiveProbe
from collector.redact import ask
from collector.snapshot.take import Found, SnapshotRequest, take
from collector.snapshot.write import (
    Core,
    CoreContents,
    Progress,
    reading,
    redacted,
    write_found,
)
from collector.store.encoding import utf8_only
from collector.store.store import Store

_MAX_CODE = 64  # files of deleted code that are opened, as shared.c has it

# Id of the record, pid, folder of the record -> what was put there of the last system calls of the
# process's threads; why there is nothing; None: nobody keeps any
KeepCalls = Callable[[str, int, Path], CallsFacts | str | None]


class TriggerContext(msgspec.Struct, frozen=True, kw_only=True):
    """Why the agent takes a snapshot on its own, and of which process."""

    key: ProcessKey
    rule: str
    trigger: str  # and what it saw


def store_snapshot(
    store: Store,
    pid: int,
    request: SnapshotRequest,
    contents: CoreContents,
    live: LiveProbe | None,
    compress: Compress | None = None,
    progress: Progress | None = None,
    trigger: TriggerContext | None = None,
    keep_calls: KeepCalls | None = None,
) -> Record:
    """Take a snapshot of `pid` into the store; returns its record.

    The core ends where `request.min_free` begins. Raises CaptureError if the process cannot be
    captured, StoreError if the core cannot be written; nothing is left behind then.
    """
    compress = compress or Compress()
    free = free_bytes(store.path)
    if free < request.min_free:  # nobody is to stand for a core of nothing
        raise StoreError(
            f"{store.path}: no snapshot: {free >> 20} MiB are free, "
            f"store.min_free is {show_size(request.min_free)}"
        )
    identity = secrets.token_hex(8)
    contents = msgspec.structs.replace(contents, record=identity)
    folder = store.folder(identity)
    name = core_name(compress)
    try:
        with _clean_unless_done(store, identity), contextlib.ExitStack() as later:
            files = _Files()
            small = bounded_file("coreward-explain", MAX_EXPLAIN_CORE)
            later.callback(os.close, small)

            def write(found: Found) -> Record:
                files.duplicate(found, later)
                record = _record(identity, found, contents.capture)
                with atomic_file(folder / name) as fd:
                    fcntl.flock(fd, fcntl.LOCK_EX)  # in use: an agent's start leaves it alone
                    space = SpaceWatch(fd, request.min_free, unseen(compress, 1), _no_room)
                    writer = core_writer(fd, compress)
                    core = write_found(found, contents, writer, progress, space)
                    if space.why:
                        core = msgspec.structs.replace(core, lost=space.why)
                    size = os.fstat(fd).st_blocks * 512
                # while its memory is still there
                with reading(found):
                    image, memory, pieces, *_ = redacted(found, contents, FILL)
                    write_explain_core(small, image, found.memory, pieces, source=memory)
                hidden.update(core.secrets)
                return _with_core(record, core, name, size)

            hidden: dict[str, list[str]] = {}  # of it in texts
            if contents.redact.texts and keep_calls is not None:
                keep_calls = _no_calls
            # before it is stopped, for no longer than it must be, and before we make it do calls
            calls = None if keep_calls is None else keep_calls(identity, pid, folder)
            key = None if trigger is None else trigger.key
            if contents.redact.anything:
                request = msgspec.structs.replace(request, unstaged=True)
            record, facts = take(pid, request, write, live, folder, key)
            if trigger is not None:
                record = msgspec.structs.replace(record, rule=trigger.rule, trigger=trigger.trigger)
            record = _with_surroundings(_with_calls(record, calls))
            # a person waits for it, or nobody does
            nice = 0 if trigger is None else 19
            record = _explained(record, facts, small, files, folder, nice=nice)
            if contents.capture is Capture.FULL:
                record = with_heap(record, _heap(folder / name, files, nice=nice))
            if contents.redact.texts:
                record = ask.redacted(utf8_only(record), contents.redact, hidden)
            store.put(record)
            return record
    except OSError as error:
        raise StoreError(f"{folder / name}: cannot be written: {error.strerror}") from error


def _no_calls(_record: str, _pid: int, _folder: Path) -> str:
    return "not asked for: their texts could not be redacted"


def _no_room(_written: int, _wanted: int) -> bool:
    return False  # nobody's core goes for a snapshot


@contextlib.contextmanager
def _clean_unless_done(store: Store, identity: str) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(StoreError):
            store.remove(identity)
        raise


def _record(identity: str, found: Found, capture: Capture) -> Record:
    opened = found.opened
    facts = facts_of_living(opened.pid)
    return Record(
        id=identity,
        time=datetime.datetime.now(datetime.UTC),
        pid=opened.pid,
        tid=opened.pid,
        cause=Cause.SNAPSHOT,
        comm=opened.comm,
        ns_pid=None if found.image.psinfo is None else found.image.psinfo.pid,
        start_ns=opened.key.start_ns,
        exe=facts.exe,
        cmdline=opened.cmdline,
        uid=opened.uid,
        gid=opened.gid,
        cgroup=facts.cgroup,
        unit=facts.unit,
        container=facts.container,
        pod=facts.of_pod,
        thread_name=found.image.threads[0].name or None,
        threads=len(found.image.threads),
        resident_bytes=opened.resident,
        capture_wanted=capture,
        capture=capture,
        outcome=Outcome.COMPLETE,
        lost=lost_names(found.image.mappings),
    )


def _with_core(record: Record, core: Core, name: str, size: int) -> Record:
    if core.unseen:
        record = msgspec.structs.replace(record, lost={**record.lost, "redaction": core.unseen})
    return msgspec.structs.replace(
        record,
        redacted=core.redacted,
        core=name,
        core_size=size,
        core_memory=core.result.written,
        outcome=Outcome.TRUNCATED if core.truncated else Outcome.COMPLETE,
        lost=record.lost if core.lost is None else {**record.lost, "memory": core.lost},
    )


def _with_calls(record: Record, calls: CallsFacts | str | None) -> Record:
    if isinstance(calls, str):
        return msgspec.structs.replace(record, lost={**record.lost, "calls": calls})
    return msgspec.structs.replace(record, calls=calls)


def _with_surroundings(record: Record) -> Record:
    """What else is true of the process, as it goes on."""
    record = msgspec.structs.replace(
        record, host=read_host(), age_s=age_s(record.time, record.start_ns)
    )
    stat = stat_of(record.pid)
    if stat is None or not ProcessKey(record.pid, stat.start_ns).is_same(
        ProcessKey(record.pid, record.start_ns)
    ):
        return msgspec.structs.replace(record, lost={**record.lost, "ancestry": "it has gone"})
    ancestry, why = with_ancestors([], stat.ppid, stat.start_ns)
    lost = {} if why is None else {"ancestry": why}
    descriptors = count = None
    try:
        descriptors, count = open_files(record.pid)
        if count > MOST:
            lost["descriptors"] = f"the lowest {MOST} of {count} are told"
    except OSError as error:
        lost["descriptors"] = error.strerror or str(error)
    return msgspec.structs.replace(
        record,
        ppid=stat.ppid,
        ancestry=ancestry,
        descriptors=descriptors,
        descriptors_open=count,
        lost={**record.lost, **lost},
    )


class _Files:
    """The process's root folder and executable, which may exist only in its container, O_PATH; and
    the files of its code that were deleted or replaced, by an address in their mappings."""

    root: int | None = None
    exe: int | None = None

    def __init__(self) -> None:
        self.code: dict[int, int] = {}

    def duplicate(self, found: Found, until: contextlib.ExitStack) -> None:
        own = own_devices()
        deleted = (
            (m.start, m.end)
            for m in found.image.mappings
            if m.nlink == 0 and not m.shared and m.prot & Prot.X and m.device in own
        )
        opened = found.opened.open_shared(itertools.islice(deleted, _MAX_CODE))
        self.code = {start: _duplicate(fd, until) for start, fd in opened.items()}
        self.root = _duplicate(found.opened.root_fd, until)
        if found.opened.exe_fd is not None:
            self.exe = _duplicate(found.opened.exe_fd, until)


def _duplicate(fd: int, until: contextlib.ExitStack) -> int:
    own = os.dup(fd)
    until.callback(os.close, own)
    return own


def _explained(
    record: Record, facts: SnapshotFacts, small: int, files: _Files, folder: Path, *, nice: int
) -> Record:
    exe = None if files.exe is None else Path(f"/proc/self/fd/{files.exe}")
    core = Path(f"/proc/self/fd/{small}")
    found = explain_core(
        core, exe=exe, root_fd=files.root, mapped=files.code, keep=folder, nice=nice
    )
    record = with_explanation(msgspec.structs.replace(record, snapshot=facts), found)
    return concluded(record)


def _heap(core: Path, files: _Files, *, nice: int) -> HeapReport:
    exe = None if files.exe is None else Path(f"/proc/self/fd/{files.exe}")
    return heap_of_core(core, exe=exe, root_fd=files.root, nice=nice)
