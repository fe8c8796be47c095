"""The mappings of a live process from /proc alone, for those who may not use BPF.

/proc/PID/smaps (proc(5)) tells what the BPF iterator reads from the kernel: flags, and whether a
mapping owns anonymous pages. It walks all page tables, so it is no way for a process that waits.
"""

from __future__ import annotations

import itertools
import re

import msgspec

from collector.capture.image import parse_maps
from collector.elfcore import types
from collector.elfcore.types import Mapping
from collector.errors import CaptureError
from collector.linux.leader import with_memory

_FLAGS = {  # VmFlags of proc(5)
    "rd": types.VM_READ,
    "wr": types.VM_WRITE,
    "ex": types.VM_EXEC,
    "sh": types.VM_SHARED,
    "io": types.VM_IO,
    "ht": types.VM_HUGETLB,
    "wf": types.VM_WIPEONFORK,
    "dd": types.VM_DONTDUMP,
    "dc": types.VM_DONTCOPY,
}
_LINE = re.compile(rb"^[0-9a-f]+-[0-9a-f]+ ", re.MULTILINE)
_DELETED = " (deleted)"


def read_mappings(pid: int) -> list[Mapping]:
    """All mappings by address. CaptureError if they may not be read."""
    try:
        with open(f"/proc/{with_memory(pid)}/smaps", "rb") as file:
            text = file.read()
    except OSError as error:
        raise CaptureError(f"the mappings of process {pid}: {error.strerror}") from error
    starts = [match.start() for match in _LINE.finditer(text)] + [len(text)]
    blocks = (text[a:b] for a, b in itertools.pairwise(starts))
    return [_mapping(block) for block in blocks]


def _mapping(block: bytes) -> Mapping:
    line, _, rest = block.partition(b"\n")
    fields = dict(row.partition(b":")[::2] for row in rest.splitlines())
    words = fields.get(b"VmFlags", b"").decode().split()
    path_of = parse_maps(line)[0]
    path = path_of.path or ""
    return msgspec.structs.replace(
        path_of,
        vm_flags=sum(_FLAGS.get(word, 0) for word in words),
        anon_vma=int(fields.get(b"Anonymous", b"0").split()[0]) > 0 or _is_private_data(path_of),
        nlink=(0 if path.endswith(_DELETED) else 1) if path_of.inode else None,
        special=path in ("[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]"),
    )


def _is_private_data(mapping: Mapping) -> bool:
    """Anonymous private memory: the kernel gives it an anon_vma with its first page."""
    return not mapping.shared and not mapping.inode
