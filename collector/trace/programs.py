"""The BPF programs of a trace: loaded and attached from entry to exit of the context.

They belong to this process: nothing is pinned, and they are gone with it. It knows how they are
loaded and asked, not what the answers mean.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from collector.errors import ProbeError
from collector.linux import libbpf
from collector.linux.bpfhash import HashMap
from collector.linux.ringbuf import Ring
from collector.probe import files
from collector.trace import layout, shapes

# those that see a thread's end and its children first, so that no thread is armed without them
_ATTACHED = ("born", "execed", "ended", "signal_sent", "signal_taken", "leave", "enter")
_ITERATORS = ("arm", "disarm", "present", "kept_calls")
_MAPS = ("rules", "shapes", "arming", "trace_counters", "stopped", "untold", "ring")
_AT_ONCE = 1 << 20  # bytes that are read of an iterator


class Programs:
    """See the module. `ring`, `stopped` and `untold` are there between entry and exit."""

    ring: Ring
    stopped: HashMap  # tgid -> ns of its start: processes that wait for the reader
    untold: HashMap  # tid -> struct cw_untold

    def __init__(self, rules: Sequence[bytes], ring: int, *, strings: bool) -> None:
        """`rules`: each a struct cw_trace_rule, numbered from 1. `ring`: its bytes. `strings`:
        whether any rule wants some."""
        self._rules = rules
        self._ring_bytes = ring
        self._strings = strings
        self._links: list[int] = []
        self._descriptors: dict[str, int] = {}

    def __enter__(self) -> Self:
        """ProbeError says what is missing."""
        path = files.trace_object_file()
        try:
            image = path.read_bytes()
        except OSError as error:
            raise ProbeError(
                f"{path} cannot be read ({error.strerror}): build it with "
                "`python -m collector.probe.build build`. Only this object can trace: "
                "the loader bcc has no typed tracepoints"
            ) from error
        try:
            self._load(image, str(path))
        except (OSError, ProbeError) as error:
            self.close()
            if isinstance(error, ProbeError):
                raise
            raise ProbeError(f"tracing cannot begin: {error.strerror or error}") from error
        return self

    def _load(self, image: bytes, name: str) -> None:
        with libbpf.Object(image, name, entries={"ring": self._ring_bytes}) as loaded:
            programs = dict(loaded.programs())
            for program in (*_ITERATORS, *_ATTACHED):
                self._descriptors[program] = os.dup(programs[program])
            for map_name in _MAPS:
                self._descriptors[map_name] = os.dup(loaded.map(map_name))
        self.ring = Ring(os.dup(self._descriptors["ring"]))
        self.stopped = HashMap(os.dup(self._descriptors["stopped"]))
        self.untold = HashMap(os.dup(self._descriptors["untold"]))
        for number, rule in enumerate(self._rules, 1):
            self.write("rules", number, rule)
        if self._strings:
            self._write_shapes()
        for program in _ATTACHED:
            self._links.append(libbpf.attach_function(self._descriptors[program]))

    def _write_shapes(self) -> None:
        table, size = shapes.shapes(), layout.SHAPE.size
        for index in range(len(table) // size):
            one = table[index * size : (index + 1) * size]
            if any(one):
                self.write("shapes", index, one)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def detach(self) -> None:
        """From now on nothing is told; what is in the ring can still be read."""
        while self._links:
            os.close(self._links.pop())

    def close(self) -> None:
        """Detach, unload. Safe to call again."""
        self.detach()
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])
        for name in ("ring", "stopped", "untold"):
            if name in vars(self):
                vars(self).pop(name).close()

    def descriptor(self, name: str) -> int:
        """Of a map or a program; it stays ours."""
        return self._descriptors[name]

    def write(self, name: str, index: int, value: bytes) -> None:
        """Set an element of an array map."""
        libbpf.write_array(self._descriptors[name], index, value)

    def counter(self, number: int) -> int:
        """One of enum cw_trace_counter."""
        value = libbpf.read_array(self._descriptors["trace_counters"], number, 8)
        return int.from_bytes(value, "little")

    def missed(self) -> int:
        """How often a program was not run, because it ran on that CPU already."""
        return sum(libbpf.recursion_misses(self._descriptors[name]) for name in _ATTACHED)

    def iterate(self, iterator: str, pid: int, *, single: bool = False) -> bytes:
        """All that an iterator tells of a process, with `single` of a thread; `pid` 0: of all.

        Empty if there is none. ProbeError if the kernel does not list it.
        """
        try:
            opened = libbpf.open_task_iterator(self._descriptors[iterator], pid, single=single)
        except OSError as error:
            return _nothing(error, pid)
        try:
            parts = []
            while part := os.read(opened, _AT_ONCE):
                parts.append(part)
            return b"".join(parts)
        except OSError as error:
            return _nothing(error, pid)
        finally:
            os.close(opened)


def _nothing(error: OSError, pid: int) -> bytes:
    if error.errno in (errno.ESRCH, errno.ENOENT):
        return b""
    raise ProbeError(f"process {pid} cannot be listed: {error.strerror}") from error
