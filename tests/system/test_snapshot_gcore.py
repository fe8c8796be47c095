"""`coreward gcore`, and the same under the name `gcore`, beside gdb's script of that name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from collector.elfcore.reader import CoreFile
from tests.system.snapshots import COMMAND, backtraces, executable_of, holds
from tests.system.test_snapshot_areas import Areas, areas
from tests.system.victims import PATIENCE, ROOT

GDBS = Path("/usr/bin/gcore")


class Both(NamedTuple):
    """The two commands, each with a folder in which it is run."""

    gdbs: subprocess.CompletedProcess[str]
    ours: subprocess.CompletedProcess[str]
    gdbs_folder: Path
    ours_folder: Path

    @property
    def files(self) -> tuple[list[str], list[str]]:
        """What each has left in its folder."""
        one, two = (
            sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
            for folder in (self.gdbs_folder, self.ours_folder)
        )
        return one, two

    @property
    def saved(self) -> tuple[list[str], list[str]]:
        """The lines that scripts look for."""
        one, two = (
            [line for line in ran.stdout.splitlines() if line.startswith(("Saved", "gcore", "us"))]
            for ran in (self.gdbs, self.ours)
        )
        return one, two


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The console script as pip makes it, and a link to it that is named `gcore`."""
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "coreward"
    script.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from collector.cli import main\nsys.exit(main())\n"
    )
    script.chmod(0o755)
    link = folder / "gcore"
    link.symlink_to(script)
    return link


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Areas]:
    with areas(tmp_path_factory.mktemp("target")) as found:
        yield found


def both(installed: Path, folder: Path, *words: object) -> Both:
    """Run both with the same arguments, each in its own folder."""
    done = []
    for name, command in (("gdbs", GDBS), ("ours", installed)):
        (folder / name / "sub").mkdir(parents=True, exist_ok=True)
        done.append(
            subprocess.run(
                [command, *map(str, words)],
                cwd=folder / name,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
        )
    ran = Both(done[0], done[1], folder / "gdbs", folder / "ours")
    assert ran.ours.returncode == ran.gdbs.returncode
    assert ran.files[0] == ran.files[1]
    assert ran.saved[0] == ran.saved[1]
    return ran


def test_one_process(installed: Path, target: Areas, tmp_path: Path) -> None:
    # WHEN both save a core of a process
    ran = both(installed, tmp_path, target.pid)
    # THEN it is in the same file, and the same is said of it at the end
    assert ran.ours.returncode == 0
    assert ran.files[1] == [f"core.{target.pid}"]
    assert ran.ours.stdout.splitlines()[-1] == f"Saved corefile core.{target.pid}"
    # AND gdb shows the same of it
    executable = executable_of(target.pid)
    found = [backtraces(folder / f"core.{target.pid}", executable) for folder in ran[2:]]
    assert found[0] == found[1] != {}
    # AND as in gdb's, each segment has contents, though there are mappings without
    with CoreFile(ran.ours_folder / f"core.{target.pid}") as core:
        assert all(placed.segment.filesz for placed in core.segments)
        held = {placed.segment.vaddr for placed in core.segments}
        assert any(line.start not in held for line in core.notes.files or ())


def test_several_processes_and_a_prefix(installed: Path, target: Areas, tmp_path: Path) -> None:
    with areas(tmp_path) as other:
        ran = both(installed, tmp_path, "-o", "sub/x", target.pid, other.pid)
        assert ran.files[1] == sorted(f"sub/x.{pid}" for pid in (target.pid, other.pid))
        assert ran.ours.stdout == "".join(
            f"Saved corefile sub/x.{pid}\n" for pid in (target.pid, other.pid)
        )
    assert ran.ours.returncode == 0


def test_all_mappings(installed: Path, target: Areas, tmp_path: Path) -> None:
    # WHEN everything is asked for, THEN that is in it which the process does not want to be dumped
    ran = both(installed, tmp_path, "-a", "-o", "all", target.pid)
    start, size = target.where["dontdump"]
    held = []
    for folder in (ran.gdbs_folder, ran.ours_folder):
        with CoreFile(folder / f"all.{target.pid}") as core:
            held.append(holds(core, start) and core.read(start, size))
    assert held[0] == held[1] == b"dontdump".ljust(size, b"\0")


def test_a_process_that_is_not_there(installed: Path, target: Areas, tmp_path: Path) -> None:
    # GIVEN a pid that nobody has, between two that somebody has
    nobody = subprocess.Popen(["true"])
    nobody.wait()
    # THEN both stop there
    ran = both(installed, tmp_path, target.pid, nobody.pid, target.pid)
    assert ran.ours.returncode == 1
    assert ran.ours.stdout.splitlines()[-1] == f"gcore: failed to create core.{nobody.pid}"
    assert ran.ours.stderr == f"there is no process {nobody.pid} in this pid namespace\n"
    assert ran.files[1] == [f"core.{target.pid}"]


@pytest.mark.parametrize("words", [(), ("-a",), ("-x", "1"), ("-o",), ("-h",), ("-a", "-o", "x")])
def test_usage(words: tuple[str, ...], installed: Path, tmp_path: Path) -> None:
    ran = both(installed, tmp_path, *words)
    assert (ran.ours.returncode, ran.ours.stdout) == (2, ran.gdbs.stdout)
    assert ran.ours.stdout == "usage:  gcore [-a] [-o prefix] pid1 [pid2...pidN]\n"


def test_words_that_are_no_pids(installed: Path, target: Areas, tmp_path: Path) -> None:
    # options end at the first word that is none
    ran = both(installed, tmp_path, target.pid, "-a")
    assert ran.ours.returncode == 1
    assert ran.saved[1] == [f"Saved corefile core.{target.pid}", "gcore: failed to create core.-a"]


def test_a_folder_that_is_not_there(installed: Path, target: Areas, tmp_path: Path) -> None:
    ran = both(installed, tmp_path, "-o", "nowhere/x", target.pid)
    assert ran.ours.returncode == 1
    assert ran.saved[1] == [f"gcore: failed to create nowhere/x.{target.pid}"]


def test_an_existing_file_is_replaced(installed: Path, target: Areas, tmp_path: Path) -> None:
    for name in ("gdbs", "ours"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"core.{target.pid}").write_text("old")
    ran = both(installed, tmp_path, target.pid)
    with CoreFile(ran.ours_folder / f"core.{target.pid}") as core:
        assert len(core.threads) == 1


def test_as_a_verb(target: Areas, tmp_path: Path) -> None:
    words = [*COMMAND, "gcore", "-o", str(tmp_path / "x"), str(target.pid)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"Saved corefile {tmp_path / 'x'}.{target.pid}\n"
    assert done.stderr == ""
