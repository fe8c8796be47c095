"""Each victim really dies, and its core is explained: the functions, exactly."""

from __future__ import annotations

import os
import shutil
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.explain.run import explain_core
from collector.explain.types import Explanation
from collector.model import Access, Frame
from tests.system.cores import KernelCore, kernel_core
from tests.system.settings import kernel_settings
from tests.system.victims import build, running

SCENARIOS = [
    ("null_main", [], "null_main.c:6", ["inner", "outer", "main"]),
    (
        "null_worker",
        [],
        "null_worker.c:16",
        ["count_request", "serve_request", "serve_client", "worker"],
    ),
    ("segv_kinds", ["read"], "segv_kinds.c:8", ["fault_read", "main"]),
    ("segv_kinds", ["readonly"], "segv_kinds.c:13", ["fault_write", "main"]),
    ("segv_kinds", ["execute"], "segv_kinds.c:18", ["fault_execute", "main"]),
    ("segv_kinds", ["noncanonical"], "segv_kinds.c:8", ["fault_read", "main"]),
    ("bus_truncated", [], "bus_truncated.c:8", ["read_mapped", "main"]),
    ("illegal", [], "illegal.c:6", ["undefined", "main"]),
    ("divide", [], "divide.c:6", ["divide", "main"]),
    ("breakpoint", [], "breakpoint.c:7", ["stop_here", "main"]),
    ("seccomp", [], "seccomp.c:26", ["forbidden_call", "main"]),
    ("assertion", [], "assertion.c:8", ["require", "main"]),
    ("double_free", [], "double_free.c:6", ["release", "main"]),
    ("uncaught", [], "uncaught.cpp:13", ["shop::Order::place(int)", "main"]),
    ("inlined", [], "inlined.c:6", ["store", "update", "main"]),
    ("heap_abort", ["16"], "heap_abort.c:13", ["check_invariant", "run", "main"]),
    # raised while its handler runs, which blocks it: it kills when the handler returns
    ("handled", ["reraise"], "handled.c:25", ["fault", "main"]),
    ("threads", ["100"], "threads.c:13", ["crash", "crasher"]),
    ("mappings", ["2000"], "mappings.c:8", ["crash", "main"]),
]


def own(frames: list[Frame] | None, executable: Path) -> list[Frame]:
    """The frames of the program itself, without those of the C library and the start-up code."""
    return [f for f in frames or [] if f.module == str(executable) and f.function != "_start"]


def functions(frames: list[Frame] | None, executable: Path) -> list[str | None]:
    return [frame.function for frame in own(frames, executable)]


@pytest.mark.parametrize(
    ("victim", "arguments", "place", "expected"),
    SCENARIOS,
    ids=[" ".join([name, *arguments]) for name, arguments, _, _ in SCENARIOS],
)
def test_the_backtrace_of_a_crash(
    victim: str, arguments: list[str], place: str, expected: list[str], tmp_path: Path
) -> None:
    # GIVEN the kernel's core of a victim
    core = kernel_core(victim, *arguments, folder=tmp_path)
    # WHEN it is explained
    explanation = explain_core(core.path)
    # THEN the program's frames are those of its source, the innermost with file and line
    frames = own(explanation.frames, core.executable)
    assert [frame.function for frame in frames] == expected
    assert f"{Path(frames[0].file or '').name}:{frames[0].line}" == place
    assert explanation.lost == {}


def test_a_stack_overflow_keeps_the_innermost_frames(tmp_path: Path) -> None:
    core = kernel_core("stack_overflow", folder=tmp_path)
    explanation = explain_core(core.path)
    assert functions(explanation.frames, core.executable) == ["recurse"] * 256
    assert explanation.lost == {"outer_frames": "only the innermost 256 frames are kept"}


@pytest.mark.parametrize(
    ("kind", "access"),
    [
        ("read", Access.READ),
        ("readonly", Access.WRITE),
        ("execute", Access.EXECUTE),
        ("noncanonical", None),  # the kernel does not say which address it was
    ],
)
def test_what_the_faulting_instruction_did(
    kind: str, access: Access | None, tmp_path: Path
) -> None:
    core = kernel_core("segv_kinds", kind, folder=tmp_path)
    assert explain_core(core.path).fault_access == access


def test_what_the_c_library_said_before_it_aborted(tmp_path: Path) -> None:
    core = kernel_core("double_free", folder=tmp_path)
    message = explain_core(core.path).abort_message
    assert message == "free(): double free detected in tcache 2"


def test_all_threads(tmp_path: Path) -> None:
    # GIVEN a program of 51 threads, 49 of which sleep
    core = kernel_core("threads", "50", folder=tmp_path)
    # WHEN all its threads are asked for
    threads = explain_core(core.path, all_threads=True).threads
    # THEN each one is there, with its own functions
    assert threads is not None
    seen = Counter(tuple(functions(t.frames, core.executable)) for t in threads)
    assert seen == {("sleeper",): 49, ("crash", "crasher"): 1, ("main",): 1}
    assert {t.lost for t in threads} == {None}


@pytest.mark.parametrize(
    ("victim", "arguments", "module"),
    [
        ("py_crash.py", ["segv"], "_ctypes.cpython-311-x86_64-linux-gnu.so"),
        ("py_crash.py", ["abort"], "python3.11"),
        ("node_crash.js", [], "node"),
        ("Crash", [], "libjvm.so"),
    ],
)
def test_interpreters_and_virtual_machines(
    victim: str, arguments: list[str], module: str, tmp_path: Path
) -> None:
    core = kernel_core(victim, *arguments, folder=tmp_path)
    explanation = explain_core(core.path)
    modules = [Path(f.module).name for f in explanation.frames or [] if f.module]
    assert next(name for name in modules if name != "libc.so.6") == module


# ---- the files of the process, and whose they are


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> KernelCore:
    return kernel_core("null_main", folder=tmp_path_factory.mktemp("plain"))


def only_the_stack(core: bytes) -> bytes:
    """The core with no other memory than the dying thread's stack: all else is not dumped."""
    image = bytearray(core)
    phoff, count = struct.unpack_from("<Q", image, 32)[0], struct.unpack_from("<H", image, 56)[0]
    headers = [struct.unpack_from("<IIQQQQQQ", image, phoff + 56 * i) for i in range(count)]
    note = next(h for h in headers if h[0] == 4)
    # the first note is the dying thread's PRSTATUS: 12 bytes and a name of 8 before it, registers
    # at 112, of which the stack pointer is number 19
    sp = struct.unpack_from("<Q", image, note[2] + 20 + 112 + 19 * 8)[0]
    for i, header in enumerate(headers):
        if header[0] == 1 and not header[3] <= sp < header[3] + header[6]:
            struct.pack_into("<Q", image, phoff + 56 * i + 32, 0)  # p_filesz
    return bytes(image)


def test_a_core_of_one_stack_is_enough(plain: KernelCore, tmp_path: Path) -> None:
    # GIVEN a core that holds one stack: no list of libraries, no ELF headers, no build-ids
    small = tmp_path / "small"
    small.write_bytes(only_the_stack(plain.path.read_bytes()))
    # THEN the backtrace is the same
    expected = explain_core(plain.path)
    explanation = explain_core(small)
    assert explanation.frames == expected.frames
    assert (explanation.fault_access, expected.fault_access) == (Access.WRITE, Access.WRITE)

    # AND it is said which files could not be verified
    def verified(e: Explanation) -> dict[str, bool]:
        return {m.path: m.verified for m in e.modules if m.path == str(plain.executable)}

    assert verified(expected) == {str(plain.executable): True}
    assert verified(explanation) == {str(plain.executable): False}


def test_a_replaced_program_is_not_taken_for_the_one_that_died(tmp_path: Path) -> None:
    # GIVEN a program that is replaced by another one after it has crashed
    program = tmp_path / "program"
    shutil.copy(build("null_main"), program)
    with (
        running("null_main", cwd=tmp_path, file=program) as victim,
        kernel_settings(core_pattern="core", core_uses_pid="0"),
    ):
        victim.go()
        victim.wait()
    program.unlink()
    shutil.copy(build("divide"), program)
    # THEN its frames stay without names, and the reason is given
    explanation = explain_core(tmp_path / "core")
    assert {f.function for f in own(explanation.frames, program)} == {None}
    why = "its file is another one than was mapped (build-id)"
    assert explanation.lost == {"symbols": f"{program}: {why}"}
    # WHEN the caller still has the right one
    explanation = explain_core(tmp_path / "core", exe=build("null_main"))
    # THEN that is used
    assert functions(explanation.frames, program) == ["inner", "outer", "main"]
    assert explanation.lost == {}


def descendants(pid: int) -> Iterator[int]:
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        yield int(child)
        yield from descendants(int(child))


def test_a_process_in_its_own_mount_namespace(tmp_path: Path) -> None:
    # GIVEN a crash of a program that exists only in a mount namespace of its own
    inside = tmp_path / "inside"
    inside.mkdir()
    arguments = [str(inside), str(build("null_main"))]
    with running("namespace", *arguments, cwd=tmp_path) as victim:
        pid = list(descendants(victim.pid))[-1]
        root = os.open(f"/proc/{pid}/root", os.O_PATH)
        # the last process of a mount namespace takes the mounts below its root with it, unless
        # somebody holds the namespace
        namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
        try:
            with kernel_settings(core_pattern="core", core_uses_pid="0"):
                victim.go()
                assert victim.wait() == 128 + 11
            # THEN its names are found through its root, and nowhere else
            explanation = explain_core(tmp_path / "core", root_fd=root)
            elsewhere = explain_core(tmp_path / "core")
        finally:
            os.close(root)
            os.close(namespace)
    program = inside / "null_main"
    assert functions(explanation.frames, program) == ["inner", "outer", "main"]
    assert explanation.lost == {}
    assert {f.function for f in own(elsewhere.frames, program)} == {None}
    assert elsewhere.lost == {"symbols": f"{program}: No such file or directory"}
