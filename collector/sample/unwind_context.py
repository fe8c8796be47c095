"""The unwind context: what unwinding needs of a process besides its stacks, kept while it lives.

A small core in memory holds its mappings, the headers of its objects, its vdso and its loader's
list. Descriptors of its executable and its root stay open, so that stacks can be unwound after its
end. Reading all this neither stops the process nor writes to it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Self

from collector.arch.x86_64 import NO_32_BIT, is_32_bit
from collector.capture.image import with_gate
from collector.capture.memory import ProcessMemory
from collector.capture.select import carve, select_none, select_stacks
from collector.elfcore.sink import SparseWriter
from collector.elfcore.types import Mapping, ProcessImage, Prot, Thread
from collector.elfcore.writer import write_core
from collector.errors import ProcessError
from collector.introspect import Process

_REGISTERS = 27

Code = frozenset[tuple[int, int, int, int, str | None]]


def code_of(mappings: Sequence[Mapping]) -> Code:
    """The code of a process that comes from files: while it is the same, so is what addresses
    mean. Code that is made at run time has no names, and comes and goes.
    """
    return frozenset(
        (m.start, m.end, m.offset, m.inode, m.path) for m in mappings if m.prot & Prot.X and m.inode
    )


class UnwindContext:
    """The context for one state of a process's mappings. A context manager."""

    def __init__(self, process: Process) -> None:
        """ProcessError if the process is gone, or may not be read."""
        self._stack = contextlib.ExitStack()
        try:
            if is_32_bit(process.auxv()):
                raise ProcessError(NO_32_BIT)
            mappings = process.mappings()
            self.code = code_of(mappings)
            self.root_fd = self._keep(process.open("root", os.O_PATH))
            self.exe_fd: int | None = None
            with contextlib.suppress(ProcessError):
                self.exe_fd = self._keep(process.open("exe", os.O_PATH))
            self.core_fd = self._keep(os.memfd_create("unwind-context", os.MFD_CLOEXEC))
            self._write(process, mappings)
        except OSError as error:
            self.close()
            raise ProcessError(f"process {process.pid}: {error.strerror or error}") from error
        except BaseException:
            self.close()
            raise

    def _keep(self, fd: int) -> int:
        self._stack.callback(os.close, fd)
        return fd

    def _write(self, process: Process, mappings: Sequence[Mapping]) -> None:
        image = ProcessImage(
            threads=[Thread(tid=process.pid, regs=(0,) * _REGISTERS)],
            mappings=with_gate(mappings),
            auxv=process.auxv(),
        )
        with contextlib.ExitStack() as stack:
            mem, pagemap = process.open("mem"), process.open("pagemap")
            stack.callback(os.close, mem)
            stack.callback(os.close, pagemap)
            memory = ProcessMemory(mem, pagemap, image.mappings, {})
            keep = select_stacks(image.mappings, [], image.auxv, memory.read)
            write_core(
                image, carve(select_none(image.mappings), keep), memory, SparseWriter(self.core_fd)
            )

    def holds(self, address: int) -> bool:
        """Whether there was code at this address."""
        return any(start <= address < end for start, end, *_ in self.code)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()
