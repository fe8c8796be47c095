"""The mappings of a live process from /proc alone, for those who may not use BPF.

/proc/PID/smaps (proc(5)) tells what the BPF iterator reads from the kernel: flags, and whether a
mapping owns anonymous pages. It walks all page tables, so it is no way for a process that waits.
"""

from __future__ import annotations

import msgspec

from collector.capture.image import mapping_of
from collector.elfcore import types
from collector.elfcore.types import Mapping
from collector.errors import CaptureError
from collector.linux.procfs import SmapsEntry, parse_smaps, thread_with_memory

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
_DELETED = " (deleted)"


def list_mappings(pid: int) -> list[Mapping]:
    """All mappings by address. CaptureError if they may not be read."""
    try:
        with open(f"/proc/{thread_with_memory(pid)}/smaps", "rb") as file:
            text = file.read()
    except OSError as error:
        raise CaptureError(f"the mappings of process {pid}: {error.strerror}") from error
    return [_mapping(entry) for entry in parse_smaps(text)]


def _mapping(entry: SmapsEntry) -> Mapping:
    mapping = mapping_of(entry.line)
    path = mapping.path or ""
    return msgspec.structs.replace(
        mapping,
        vm_flags=sum(_FLAGS.get(flag, 0) for flag in entry.flags),
        anon_vma=entry.anonymous > 0 or _is_private_data(mapping),
        nlink=(0 if path.endswith(_DELETED) else 1) if mapping.inode else None,
        special=path in ("[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]"),
    )


def _is_private_data(mapping: Mapping) -> bool:
    """Anonymous private memory: the kernel gives it an anon_vma with its first page."""
    return not mapping.shared and not mapping.inode
