"""A bundle of a real process, opened where none of the process's files are any more."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from minidump.minidumpfile import MinidumpFile

from collector.arch.x86_64 import Reg
from collector.elfcore.reader import CoreFile
from tests.bundles import members
from tests.system.victims import PATIENCE, ROOT, build, running, wait_until

_PAUSE = 34  # number of the system call
# A library that would have a script of its own run by a debugger that trusts it.
_LIBRARY = r"""
#include <unistd.h>
asm(".pushsection \".debug_gdb_scripts\", \"MS\", @progbits, 1\n.byte 4\n"
    ".asciz \"gdb.inlined-script\\nprint('SCRIPT OF STRANGERS')\"\n.popsection");
static void inner(int depth) { if (depth) inner(depth - 1); else pause(); }
void outer(void) { inner(1); }
"""
_REGISTERS = Reg.RIP, Reg.RSP, Reg.RBP
_FRAMES = ["inner", "inner", "outer", "main"]


class Elsewhere(NamedTuple):
    """What another machine has: the bundle, and what its owner lets gdb do."""

    bundle: Path
    home: Path

    def modules(self) -> set[tuple[str, str]]:
        """Paths and build-ids, as its manifest tells them."""
        found = json.loads(members(self.bundle)["manifest.json"])
        return {(module["path"], module["build_id"]) for module in found["modules"]}

    def run(self, verb: str, *words: str) -> subprocess.CompletedProcess[str]:
        return _coreward(
            *(verb, str(self.bundle), *words),
            COREWARD_STORE="/nowhere",
            HOME=str(self.home),
            TMPDIR=str(self.home),
        )


def _coreward(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "collector", *words],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    folder = tmp_path_factory.mktemp("bundle")
    # GIVEN a process in a library that it knows by a link
    there = folder / "there"
    there.mkdir()
    program = shutil.copy(build("in_library"), there / "in_library")
    (there / "lib.c").write_text(_LIBRARY)
    command = ["gcc", "-g", "-O0", "-fno-optimize-sibling-calls", "-shared", "-fPIC", "lib.c"]
    subprocess.run([*command, "-o", "libwaits.so.1.2"], cwd=there, check=True)
    (there / "libwaits.so.1").symlink_to("libwaits.so.1.2")
    store = str(folder / "store")
    with running(
        *("in_library", str(there / "libwaits.so.1"), "outer"), cwd=there, file=Path(program)
    ) as victim:
        victim.go()
        call = Path(f"/proc/{victim.pid}/syscall")
        wait_until(lambda: call.read_text().startswith(f"{_PAUSE} "), "it does not wait")
        done = _coreward("snapshot", str(victim.pid), "--store", store)
        assert done.returncode == 0, done.stderr
    # WHEN it is exported, and its files go
    bundle = folder / "crash.tar.zst"
    done = _coreward("export", "latest", "--bundle", "-o", str(bundle), "--store", store)
    assert (done.returncode, done.stderr) == (0, "")
    shutil.rmtree(there)
    # (whoever opens it lets gdb run all scripts)
    home = folder / "home"
    home.mkdir()
    (home / ".gdbinit").write_text("set auto-load safe-path /\n")
    yield Elsewhere(bundle, home)


def test_gdb_has_names_and_values(elsewhere: Elsewhere) -> None:
    done = elsewhere.run("debug", "--", "-batch", "-ex", "bt", "-ex", "frame 2", "-ex", "p depth")
    assert done.returncode == 0, done.stderr
    # THEN each frame has its name and its line
    shown = re.findall(r"^#\d+ .* in (\w+) \(.*\) at (?:.*/)?([\w.-]+:\d+)$", done.stdout, re.M)
    assert [name for name, _ in shown if name in _FRAMES] == [*_FRAMES, "inner"]
    assert ("outer", "lib.c:6") in shown
    assert "$1 = 1" in done.stdout
    # AND no script of the bundle's was run, and nothing of it stays
    assert "STRANGERS" not in done.stdout + done.stderr
    assert [path.name for path in elsewhere.home.iterdir()] == [".gdbinit"]


def test_its_own_backtrace_has_them_as_well(elsewhere: Elsewhere) -> None:
    done = elsewhere.run("bt", "--all")
    assert (done.returncode, done.stderr) == (0, "")
    names = re.findall(r" in (\w+)\+", done.stdout)
    assert [name for name in names if name in _FRAMES] == _FRAMES
    assert "(lib.c:6)" in done.stdout or "/lib.c:6)" in done.stdout
    assert [path.name for path in elsewhere.home.iterdir()] == [".gdbinit"]


@pytest.mark.skipif(shutil.which("lldb") is None, reason="lldb is not installed")
def test_lldb_has_them(elsewhere: Elsewhere) -> None:
    done = elsewhere.run("debug", "--debugger", "lldb", "--", "--batch", "-o", "bt")
    names = re.findall(r"frame #\d+: [^`]*`(\w+)", done.stdout)
    assert [name for name in names if name in _FRAMES] == _FRAMES


def test_a_minidump_of_the_same_process(elsewhere: Elsewhere, tmp_path: Path) -> None:
    """(what is in it is compared in tests/unit/test_minidump.py; here are real files)"""
    # GIVEN the record and the core of the bundle, in a store
    found = members(elsewhere.bundle)
    identity = json.loads(found["record.json"])["id"]
    (folder := tmp_path / "store" / "crashes" / identity).mkdir(parents=True)
    for name in ("record.json", "core", "core.zst"):
        if name in found:
            (folder / name).write_bytes(found[name])
    dump = tmp_path / "crash.dmp"
    done = _coreward(
        *("export", identity, "--minidump", "-o", str(dump), "--store", str(tmp_path / "store"))
    )
    assert (done.returncode, done.stderr) == (0, "")
    # WHEN another library reads it (LLVM's)
    shown = subprocess.run(["obj2yaml", dump], check=True, capture_output=True, text=True).stdout
    # THEN it has the modules of the bundle, with their build-ids
    listed = re.findall(r"Module Name: +'?(\S+?)'?\n +CodeView Record: 4C457042(\w+)", shown)
    assert elsewhere.modules() <= {(name, own.lower()) for name, own in listed}
    assert "linux-gate.so" in dict(listed)
    # AND one of Python has the threads of the core, with their registers and stacks
    read = MinidumpFile.parse(str(dump))
    with CoreFile(next(folder.glob("core*"))) as core:
        assert [one.ThreadId for one in read.threads.threads] == [one.tid for one in core.threads]
        for one, real in zip(read.threads.threads, core.threads, strict=True):
            seen = one.ContextObject
            assert (seen.Rip, seen.Rsp, seen.Rbp) == tuple(real.regs[n] for n in _REGISTERS)
            place = one.Stack.MemoryLocation
            start, size = one.Stack.StartOfMemoryRange, place.DataSize
            assert start <= seen.Rsp < start + size
            assert dump.read_bytes()[place.Rva :][:size] == core.read(start, size)
