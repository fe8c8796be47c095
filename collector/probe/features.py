"""What this kernel and machine can do for the probe, found out by doing it.

Small programs are loaded, attached and run, then thrown away: no configuration file is read and
no version compared, because distributions port features back and forbid others. For people
(`coresnap doctor`); the probe itself just tries.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from functools import partial

import msgspec

from collector.errors import CoresnapError, ProbeError
from collector.probe import btf, files, iterators, libbpf, pins, xsave
from collector.probe.libbpf import MapType, ProgramType

# struct bpf_insn <linux/bpf.h>: opcode, registers, offset, immediate
_INSTRUCTION = struct.Struct("<BBhi")
_MOV_IMM, _MOV_REG, _ADD_IMM, _CALL, _EXIT = 0xB7, 0xBF, 0x07, 0x85, 0x95
_GET_STACK = 67  # enum bpf_func_id
_USER_BUILD_ID = 1 << 8 | 1 << 11  # BPF_F_USER_STACK | BPF_F_USER_BUILD_ID
_FRAME = 32  # sizeof(struct bpf_stack_build_id)


def _code(*instructions: tuple[int, int, int, int]) -> bytes:
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in instructions)


_RETURN = ((_MOV_IMM, 0, 0, 0), (_EXIT, 0, 0, 0))
_NOTHING = _code(*_RETURN)
_STACK = _code(
    (_MOV_REG, 10 << 4 | 2, 0, 0),  # r2 = r10 - 32
    (_ADD_IMM, 2, 0, -_FRAME),
    (_MOV_IMM, 3, 0, _FRAME),
    (_MOV_IMM, 4, 0, _USER_BUILD_ID),
    (_CALL, 0, 0, _GET_STACK),
    *_RETURN,
)


class Feature(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was tried. `needed`: without it no loader works."""

    name: str
    ok: bool
    detail: str
    needed: bool = True


def _tried(
    name: str, attempt: Callable[[], str], *, needed: bool = True, cure: str = ""
) -> Feature:
    """Whether `attempt` succeeds; it returns the detail."""
    try:
        return Feature(name=name, ok=True, detail=attempt(), needed=needed)
    except (CoresnapError, OSError) as error:
        reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        return Feature(
            name=name, ok=False, detail=f"{reason}: {cure}" if cure else reason, needed=needed
        )


def _library() -> str:
    major, minor = libbpf.version()
    return f"libbpf {major}.{minor}"


def _map(kind: MapType) -> str:
    if not libbpf.supports_map(kind):
        raise ProbeError("the kernel makes no such map")
    return "made one"


def _attached(tracepoint: str) -> str:
    program = libbpf.load_program(ProgramType.RAW_TRACEPOINT, _NOTHING)
    try:
        os.close(libbpf.attach_raw_tracepoint(tracepoint, program))
    finally:
        os.close(program)
    return "loaded and attached a program"


def _stack() -> str:
    os.close(libbpf.load_program(ProgramType.RAW_TRACEPOINT, _STACK))
    return "loaded a program that asks for one"


def _iterated(target: str) -> str:
    program = libbpf.load_program(ProgramType.TRACING, _NOTHING, iterator=target)
    try:
        iterators.read_all(program, os.getpid())
    finally:
        os.close(program)
    return "iterated over this process"


def _live() -> str:
    from collector.probe.live import open_live  # noqa: PLC0415 - not for the agent

    with open_live() as opened:
        running = opened.no_clock or "running ones caught by clock interrupts"
        list(opened.sample(os.getpid()))
        return f"threads and stacks of this process by {opened.loader}; {running}"


def _pinned() -> str:
    path = pins.BPFFS / f"coresnap-feature-{os.getpid()}"
    descriptor = libbpf.create_array("coresnap_probe", 8, 1)
    try:
        libbpf.pin(descriptor, str(path))
        path.unlink()
    finally:
        os.close(descriptor)
    return f"pinned a map in {pins.BPFFS}"


def _bcc() -> str:
    if importlib.util.find_spec("bcc") is None:
        raise ProbeError("the module bcc is not there")
    # The one that belongs to the kernel's tools, not the crystallography package of that name.
    if importlib.util.find_spec("bcc.libbcc") is None:
        raise ProbeError("the module bcc is another project's")
    return "bcc can be imported"


def _clang() -> str:
    clang = shutil.which("clang")
    if clang is None:
        raise ProbeError("clang is not there")
    done = subprocess.run([clang, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.partition("\n")[0] or clang


def _object() -> str:
    path = files.object_file()
    return f"{path}, {path.stat().st_size} bytes"


def _xsave() -> str:
    found = xsave.probe()
    if isinstance(found, xsave.Unavailable):
        raise ProbeError(found.reason)
    return f"{found.size} bytes per thread, components {found.features:#x}"


def probe_features() -> list[Feature]:
    """Try everything that the probe relies on. Needs root to be meaningful; leaves nothing."""
    cure = "install the package python3-bpfcc, made for the system's /usr/bin/python3"
    return [
        _tried("kernel types (BTF)", lambda: f"hash {btf.kernel_hash()[:16]}"),
        _tried("libbpf", _library),
        *(_tried(f"raw tracepoint {name}", partial(_attached, name)) for name in pins.TRACEPOINTS),
        _tried("ring buffer", lambda: _map(MapType.RINGBUF)),
        _tried("task storage", lambda: _map(MapType.TASK_STORAGE)),
        _tried("user stack with build-id", _stack),
        _tried("iter/task for one process", lambda: _iterated("task")),
        _tried("iter/task_vma for one process", lambda: _iterated("task_vma")),
        _tried("pins", _pinned, cure="mount -t bpf bpf /sys/fs/bpf"),
        _tried("live processes", _live, needed=False, cure="`coresnap sample` shows no stacks"),
        _tried("XSAVE layout", _xsave, needed=False),
        _tried("built object", _object, needed=False, cure="run `make build/coresnap.bpf.o`"),
        _tried("bcc", _bcc, needed=False, cure=cure),
        _tried("clang", _clang, needed=False, cure="only needed to build the object"),
    ]
