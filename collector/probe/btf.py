"""The running kernel's types as C headers: for the CO-RE build, and for bcc.

bcc wants a tree of kernel headers and trusts it blindly: with headers of another kernel it reads
wrong offsets without a word. `header_tree` makes a tree of the few files that bcc opens, with
types from the kernel's own BTF (/sys/kernel/btf/vmlinux), and asserts for each structure that
is used that the compiler lays it out as the kernel did.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import tempfile
from collections.abc import Collection
from functools import cache
from pathlib import Path

from collector.errors import ProbeError
from collector.linux import libbpf

BTF_FILE = Path("/sys/kernel/btf/vmlinux")

# What bpf/ uses; btf_dump adds all that these need.
_STRUCTS = """
    task_struct signal_struct sighand_struct pid upid kernel_siginfo k_sigaction pt_regs mm_struct
    vm_area_struct vm_operations_struct file inode dentry super_block path vfsmount mount fs_struct
    css_set cgroup kernfs_node cred fpu fpstate bpf_iter__task bpf_iter__task_vma bpf_iter_task_vma
    bpf_iter_meta seq_file maple_node backing_file bpf_stack_build_id bpf_raw_tracepoint_args
    thread_struct file_system_type user_namespace pid_namespace rlimit mem_cgroup
    page_counter cgroup_subsys_state files_struct fdtable
"""
_OTHERS = """
    __u8 __u16 __u32 __u64 __s8 __s16 __s32 __s64 u8 u16 u32 u64 s8 s16 s32 s64 bool size_t pid_t
    uid_t gid_t uintptr_t __be16 __be32 __be64 __wsum bpf_func_id bpf_map_type pid_type
    bpf_perf_event_data bpf_perf_event_value bpf_pidns_info cgroup_subsys_id
"""
_BPF_CONSTANTS = "BPF_"


@cache
def kernel_hash() -> str:
    """Names the running kernel's types: hex SHA-256 of its BTF. ProbeError if it has none."""
    try:
        with BTF_FILE.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise ProbeError(f"{BTF_FILE} is empty: it is not the kernel's own")
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ProbeError(
            f"{BTF_FILE} cannot be read ({error.strerror}): the kernel needs CONFIG_DEBUG_INFO_BTF"
        ) from error


def _declare(types: libbpf.Types) -> None:
    for name in _OTHERS.split():
        number = types.find(name)
        if number is not None:
            types.declare(number)
    for name in _STRUCTS.split():
        number = types.find_struct(name)
        if number is not None:
            types.declare(number)
    for number in types.anonymous_enums(_BPF_CONSTANTS):
        types.declare(number)


def _without_wide_bit_fields(text: str) -> str:
    """btf_dump's padding `long: 64;` as members: a compiler may join such into wider integers,
    whose alignment is not the same on x86 and BPF.
    """
    count = itertools.count()
    return re.sub(r"\blong: 64;", lambda _: f"long padding_{next(count)};", text)


def vmlinux_h() -> str:
    """The types as a header; CO-RE relocatable unless BPF_NO_PRESERVE_ACCESS_INDEX is defined."""
    with libbpf.Types() as types:
        _declare(types)
        body = _without_wide_bit_fields(types.text())
    if re.search(r"\bmemory_cgrp_id\b", body):
        body += "\n#define COREWARD_MEMORY_CGROUPS 1\n"
    return (
        "#ifndef __VMLINUX_H__\n#define __VMLINUX_H__\n"
        "#ifndef BPF_NO_PRESERVE_ACCESS_INDEX\n"
        "#pragma clang attribute push (__attribute__((preserve_access_index)), apply_to = record)\n"
        "#endif\n"
        f"{body}\n"
        "#ifndef BPF_NO_PRESERVE_ACCESS_INDEX\n#pragma clang attribute pop\n#endif\n#endif\n"
    )


def layout_h() -> str:
    """Facts of the kernel's layout for bcc, and the proof that the compiler agrees with them."""
    lines = ["#ifndef COREWARD_LAYOUT_H", "#define COREWARD_LAYOUT_H"]
    with libbpf.Types() as types:
        for name in _STRUCTS.split():
            number = types.find_struct(name)
            if number is None:
                continue
            if name == "task_struct":
                lines.append(f"#define COREWARD_TASK_SIZE {types.size(number)}")
            if name == "backing_file" and "user_path" in dict(types.members(number)):
                lines.append("#define COREWARD_USER_PATH 1")
            if name == "thread_struct" and "fpu" in dict(types.members(number)):
                lines.append("#define COREWARD_FPU_IN_THREAD 1")
            lines += [
                f'_Static_assert(__builtin_offsetof(struct {name}, {member}) == {offset}, "");'
                for member, offset in types.members(number)
            ]
    return "\n".join([*lines, "#endif", ""])


def _kernel_version() -> str:
    numbers = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", os.uname().release)
    major, minor, patch = (int(n or 0) for n in numbers.groups()) if numbers else (6, 1, 0)
    code = (major << 16) + (minor << 8) + min(patch, 255)
    return (
        f"#define LINUX_VERSION_CODE {code}\n"
        "#define KERNEL_VERSION(a,b,c) (((a)<<16)+((b)<<8)+((c)>255?255:(c)))\n"
    )


# bcc includes linux/kconfig.h before everything else. The guard keeps out bcc's own, older
# copy of the BPF interface: all of that comes from BTF.
_KCONFIG = """\
#define CONFIG_BPF_SYSCALL 1
#define _UAPI__LINUX_BPF_H__ 1
#define BPF_NO_PRESERVE_ACCESS_INDEX 1
#include "vmlinux.h"
#include "layout.h"
#include "version.h"
"""
_EMPTY = """
    include/linux/sched.h include/linux/types.h include/linux/log2.h include/linux/signal.h
    include/linux/bpf_common.h include/uapi/linux/ptrace.h include/uapi/linux/if_packet.h
    include/uapi/linux/bpf.h
"""


def header_tree(cache_dir: Path, helpers: Collection[str]) -> Path:
    """The tree for BCC_KERNEL_SOURCE, made once per kernel below `cache_dir` (mode 0700).

    helpers: the constants of enum bpf_func_id that bcc's own headers name. Those that an older
    kernel lacks are declared as 0, BPF_FUNC_unspec, which no program may call.
    """
    cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    tree = cache_dir / f"headers-{_generator_hash(helpers)[:16]}-{kernel_hash()[:16]}"
    if tree.is_dir():
        return tree
    files = dict.fromkeys(_EMPTY.split(), "")
    files["include/linux/vmlinux.h"] = types = vmlinux_h()
    known = set(re.findall(r"\bBPF_FUNC_\w+", types))
    newer = sorted(set(helpers) - known)
    files["include/linux/kconfig.h"] = _KCONFIG + "".join(f"#define {n} 0\n" for n in newer)
    files["include/linux/layout.h"] = layout_h()
    files["include/linux/version.h"] = _kernel_version()
    files["include/asm/page.h"] = "#define PAGE_SIZE 4096\n"
    temporary = Path(tempfile.mkdtemp(prefix=".headers-", dir=cache_dir))
    for name, text in files.items():
        path = temporary / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    try:
        temporary.rename(tree)
    except OSError:  # another process was faster
        if not tree.is_dir():
            raise
    return tree


def _generator_hash(helpers: Collection[str]) -> str:
    sources = [source.read_bytes() for source in (Path(__file__), Path(libbpf.__file__))]
    names = " ".join(sorted(helpers)).encode()
    return hashlib.sha256(b"".join([*sources, names])).hexdigest()
