"""Whose files the names of a backtrace come from, and where debugging information is found."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from collector.explain.files import Root
from collector.explain.find import Finder
from collector.explain.run import explain_core
from collector.explain.types import Explanation
from collector.explain.unwind import explain
from tests.unit.unrun import BASE, LIBRARY, STACK, Loaded, Unrun, compiled, functions

_C = """
__attribute__((noinline)) void in_leaf(int x) { *(volatile int *)0 = x; }
static inline __attribute__((always_inline)) void inlined(int x)
{
	in_leaf(x);
}
int main(void)
{
	inlined(1);
	return 0;
}
"""
LEAF = 7  # bytes into in_leaf: behind its prologue
NAMED = [("in_leaf", 2, False), ("inlined", 5, True), ("main", 9, False)]
BARE = [("in_leaf", None, False), ("main", None, False)]


def program(folder: Path, *flags: str, name: str = "prog") -> Path:
    return compiled(folder, _C, "-O0", "-e", "main", *flags, name=name, suffix=".c")


def crashed(folder: Path, path: Path, shown: str | None = None, base: int = BASE) -> Path:
    """The core of a process that died in `in_leaf`; shown: its file's name in the core."""
    loaded = Loaded(path, base)
    process = Unrun(loaded)
    if shown is not None:
        process.rename(str(path), shown)
    pointer = process.push(0x8000, STACK + 0x8100, loaded.returns("main"))
    process.push(0x8100, 0, 0)
    process.thread(1, loaded.at("in_leaf", LEAF), pointer, pointer)
    return process.core(folder)


def explained(
    core: Path, *, root: Path = Path("/"), mapped: Mapping[int, int] | None = None
) -> Explanation:
    fd = os.open(root, os.O_PATH)
    try:
        return explain(
            core, Finder(Root(fd), None, mapped or {}, core.stat().st_mtime), all_threads=False
        )
    finally:
        os.close(fd)


def places(explanation: Explanation) -> list[tuple[str | None, int | None, bool]]:
    return [(frame.function, frame.line, frame.inline) for frame in explanation.frames or []]


def run(*command: str | Path) -> None:
    subprocess.run([str(word) for word in command], check=True)


# ---- debugging information


@pytest.mark.parametrize(
    "flags",
    [
        ["-g"],
        ["-gdwarf-4"],
        ["-g", "-gz=zlib", "-Wl,--compress-debug-sections=zlib"],
        ["-g", "-Wl,--compress-debug-sections=zlib-gabi"],
    ],
    ids=" ".join,
)
def test_debugging_information_in_the_program(flags: list[str], tmp_path: Path) -> None:
    core = crashed(tmp_path, program(tmp_path, *flags))
    assert places(explained(core)) == NAMED


def test_what_dwz_has_put_into_a_file_of_its_own(tmp_path: Path) -> None:
    # GIVEN two programs with debugging information that they share in a third file
    flags = ["-g", "-include", "signal.h", "-fno-eliminate-unused-debug-types"]
    one, other = (program(tmp_path, *flags, name=name) for name in ("one", "other"))
    shared = tmp_path / "shared.debug"
    run("dwz", "-m", shared, "-M", shared, one, other)
    assert shared.exists()
    # THEN there are names and lines
    assert places(explained(crashed(tmp_path, one))) == NAMED


def linked(folder: Path, *flags: str) -> tuple[Path, Path]:
    """A stripped program, and the file with its debugging information that it names."""
    path = program(folder, "-g", *flags)
    debug = folder / "prog.debug"
    run("objcopy", "--only-keep-debug", path, debug)
    run("strip", "-s", path)
    run("objcopy", f"--add-gnu-debuglink={debug}", path)
    return path, debug


@pytest.mark.parametrize("flags", [[], ["-Wl,--build-id=none"]], ids=["build-id", "checksum"])
@pytest.mark.parametrize("folder", [".", ".debug"])
def test_a_debug_link_is_followed(flags: list[str], folder: str, tmp_path: Path) -> None:
    # GIVEN a stripped program with its debugging information beside it, as a link says
    full = Loaded(program(tmp_path, "-g", *flags, name="full"), BASE)
    path, debug = linked(tmp_path, *flags)
    process = Unrun(Loaded(path, BASE))
    pointer = process.push(0x8000, STACK + 0x8100, full.returns("main"))
    process.thread(1, full.at("in_leaf", LEAF), pointer, pointer)
    (tmp_path / folder).mkdir(exist_ok=True)
    shutil.move(debug, tmp_path / folder / debug.name)
    core = process.core(tmp_path)
    # THEN there are names and lines
    explanation = explained(core)
    assert places(explanation) == NAMED
    assert explanation.lost == {}
    # AND not if the file is another one, or is gone; that is said
    found = tmp_path / folder / debug.name
    other = program(tmp_path, "-g3", *flags, name="other")
    shutil.copy(other, found)
    why = f"{path}: prog.debug, which it names (.gnu_debuglink), is not there"
    for _ in range(2):
        explanation = explained(core)
        assert set(functions(explanation.frames)) == {None}
        assert explanation.lost == {"debug_info": why}
        found.unlink(missing_ok=True)


def test_a_debug_link_that_leads_away_is_none(tmp_path: Path) -> None:
    # GIVEN a program whose debug link is a path
    path = program(tmp_path)
    section = tmp_path / "link"
    section.write_bytes(b"../secret\0\0\0" + bytes(4))
    run("objcopy", f"--add-section=.gnu_debuglink={section}", path)
    # THEN it is not looked for, nor spoken of
    explanation = explained(crashed(tmp_path, path))
    assert places(explanation) == BARE
    assert explanation.lost == {}


def test_mini_debuginfo(tmp_path: Path) -> None:
    # GIVEN a stripped program with a compressed table of its symbols, as Fedora has them
    full = program(tmp_path)
    loaded = Loaded(full, BASE)
    mini, path = tmp_path / "mini", tmp_path / "stripped"
    run("objcopy", "-S", "--keep-symbol=in_leaf", "--keep-symbol=main", full, mini)
    run("xz", "-k", mini)
    run("objcopy", "-S", f"--add-section=.gnu_debugdata={mini}.xz", full, path)
    process = Unrun(Loaded(path, BASE))
    pointer = process.push(0x8000, STACK + 0x8100, loaded.returns("main"))
    process.thread(1, loaded.at("in_leaf", LEAF), pointer, pointer)
    # THEN its functions have their names
    assert places(explained(process.core(tmp_path))) == BARE


# ---- whose file it is


def test_after_a_plain_chroot(tmp_path: Path) -> None:
    # GIVEN a process in a jail, whose mappings are told as we see them
    jail = tmp_path / "jail"
    (jail / "lib").mkdir(parents=True)
    path = program(jail / "lib")
    core = crashed(tmp_path, path)
    # THEN its files are found through its root, and so they are if they are told as it sees them
    assert places(explained(core, root=jail)) == BARE
    core = crashed(tmp_path, path, f"/lib/{path.name}")
    assert places(explained(core, root=jail)) == BARE


Change = Callable[[Path], None]


def replaced(path: Path) -> None:
    shutil.copy(path.with_name("other"), path.with_name("new"))
    path.with_name("new").rename(path)


@pytest.mark.parametrize("change", [Path.unlink, replaced], ids=["deleted", "replaced"])
@pytest.mark.parametrize("flags", [[], ["-Wl,--build-id=none"]], ids=["build-id", "none"])
def test_a_file_that_is_not_there_any_more(
    flags: list[str], change: Change, tmp_path: Path
) -> None:
    # GIVEN a program that was deleted or replaced while it ran, whose file is still open
    path = program(tmp_path, *flags)
    other = program(tmp_path, "-DOTHER", "-O1", *flags, name="other")
    core = crashed(tmp_path, path, f"{path} (deleted)")
    fd = os.open(path, os.O_RDONLY)
    change(path)
    # THEN its names come from the open file
    try:
        explanation = explained(core, mapped={BASE: fd})
    finally:
        os.close(fd)
    assert places(explanation) == BARE
    # AND without it there are none, rather than wrong ones, and it is said why
    explanation = explained(core)
    assert set(functions(explanation.frames)) == {None}
    assert [f.module_offset for f in explanation.frames or []][:1] == [
        Loaded(other, 0).at("in_leaf", 0) * 0 + (explanation.frames or [])[0].pc - BASE
    ]
    if flags:
        why = "it was deleted or replaced, and has no build-id to find it by"
    elif change is replaced:
        why = "its file is another one than was mapped (build-id)"
    else:
        why = "No such file or directory"
    assert explanation.lost == {"symbols": f"{path} (deleted): {why}"}


def test_a_file_that_was_changed_after_the_death(tmp_path: Path) -> None:
    # GIVEN a program without a build-id, in whose place another one lies since
    path = program(tmp_path, "-Wl,--build-id=none")
    core = crashed(tmp_path, path)
    assert places(explained(core)) == BARE
    replaced_by = program(tmp_path, "-Wl,--build-id=none", "-O1", name="other")
    os.utime(core, (1, 1))
    replaced_by.rename(path)
    # THEN it is not taken for the one that died
    explanation = explained(core)
    assert set(functions(explanation.frames)) == {None}
    why = "its file is newer than what ran, and there is no build-id to compare"
    assert explanation.lost == {"symbols": f"{path}: {why}"}


def test_a_file_that_was_changed_while_the_process_ran(tmp_path: Path) -> None:
    # GIVEN a program without a build-id, and a process that began an hour before, or after, it
    # was built
    path = program(tmp_path, "-Wl,--build-id=none")
    core = crashed(tmp_path, path)
    built = path.stat().st_ctime
    # THEN only a process that began later can have run this file
    assert functions(explain_core(core, began=built + 3600).frames) == ["in_leaf", "main"]
    assert set(functions(explain_core(core, began=built - 3600).frames)) == {None}


def test_files_in_memory(tmp_path: Path) -> None:
    # GIVEN a program that was run from a memfd
    path = program(tmp_path)
    core = crashed(tmp_path, path, "/memfd:prog (deleted)")
    fd = os.memfd_create("prog")
    os.write(fd, path.read_bytes())
    path.unlink()
    # THEN its names come from there
    try:
        assert places(explained(core, mapped={BASE + 0x1000: fd})) == BARE
    finally:
        os.close(fd)


def test_only_what_a_backtrace_needs_is_read(tmp_path: Path) -> None:
    # GIVEN a process with 800 libraries
    path = program(tmp_path)
    loaded = Loaded(path, BASE)
    process = Unrun(loaded)
    library = Loaded(program(tmp_path, "-shared", name="library"), LIBRARY)
    for number in range(800):
        process.add(library, LIBRARY + number * 0x100000, f"/lib/lib{number}.so")
    pointer = process.push(0x8000, STACK + 0x8100, loaded.returns("main"))
    process.thread(1, loaded.at("in_leaf", LEAF), pointer, pointer)
    # THEN only those of the backtrace are looked for
    explanation = explained(process.core(tmp_path))
    assert places(explanation) == BARE
    assert [module.path for module in explanation.modules] == [str(path)]
