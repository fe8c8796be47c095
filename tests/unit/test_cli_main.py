"""The command line as a whole: verbs, the store's place, failures in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from collector import __version__, cli
from collector.store.store import Store

ROOT = Path(__file__).resolve().parents[2]


def test_every_verb_is_there_and_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["--help"])
    assert left.value.code == 0
    overview = capsys.readouterr().out
    for name, summary in cli.VERBS.items():
        assert name in overview
        assert summary.split(":")[0] in " ".join(overview.split())
        with pytest.raises(SystemExit) as left:
            cli.main([name, "--help"])
        assert left.value.code == 0
        assert "--store DIR" in capsys.readouterr().out


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["--version"])
    assert (left.value.code, capsys.readouterr().out) == (0, f"coreward {__version__}\n")


@pytest.mark.parametrize("words", [[], ["nonsense"], ["list", "--nonsense"], ["list", "extra"]])
def test_what_makes_no_sense_is_refused(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    assert left.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("usage: coreward")


def test_closed_descriptors_are_no_error(tmp_path: Path) -> None:
    Store(tmp_path / "store", create=True).close()
    # WHEN nobody wants to read anything
    words = f"exec {sys.executable} -m collector list --store {tmp_path}/store <&- >&-"
    done = subprocess.run(
        words, shell=True, cwd=ROOT, check=False, stderr=subprocess.PIPE, text=True
    )
    # THEN that is said to nobody
    assert (done.returncode, done.stderr) == (0, "")


def test_a_failure_is_one_line_and_an_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "none"
    assert cli.main(["list", "--store", str(store)]) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == (
        "",
        f"coreward: {store}: no store there: nothing was ever recorded, or --store names another; "
        "`coreward doctor` says whether deaths are caught here\n",
    )


def test_the_store_is_that_of_the_argument_then_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # GIVEN two stores
    for name in ("one", "two"):
        with Store(tmp_path / name, create=True):
            pass
    # THEN the environment's is taken, unless the argument names another
    monkeypatch.setenv("COREWARD_STORE", str(tmp_path / "missing"))
    assert cli.main(["list", "--json"]) == 1
    assert str(tmp_path / "missing") in capsys.readouterr().err
    assert cli.main(["list", "--json", "--store", str(tmp_path / "one")]) == 0
    monkeypatch.setenv("COREWARD_STORE", str(tmp_path / "two"))
    assert cli.main(["list", "--json"]) == 0


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    # GIVEN output that nobody reads any more
    command = f"{sys.executable} -m collector --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_output_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    Store(tmp_path / "store", create=True)
    command = [sys.executable, "-m", "collector", "list", "--store", str(tmp_path / "store")]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (
        1,
        "coreward: stdout: cannot be written: No space left on device\n",
    )


def test_an_agent_goes_on_when_nobody_reads_its_lines(tmp_path: Path) -> None:
    # GIVEN an agent's standard output, whose reader has left
    code = (
        "import datetime, logging, sys\n"
        "from collector.cli.run import announce\n"
        "from collector.model import Cause, Record\n"
        "logging.basicConfig(format='%(message)s')\n"
        "sys.stdin.read()\n"
        "record = Record(id='1' * 16, time=datetime.datetime.now(datetime.UTC), pid=1, tid=1,\n"
        "                cause=Cause.EXIT, comm='x', start_ns=1)\n"
        "for _ in range(3): announce(record)\n"
    )
    agent = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert agent.stdin is not None and agent.stdout is not None
    agent.stdout.close()
    # WHEN deaths are announced THEN that is said once, and nothing fails
    agent.stdin.close()
    agent.stdin = agent.stdout = None
    _, said = agent.communicate()
    assert (agent.returncode, said) == (
        0,
        "no lines any more: stdout cannot be written: Broken pipe\n",
    )


def test_a_verb_imports_only_what_it_needs() -> None:
    # GIVEN a verb that reads records THEN neither compiler nor unwinder is loaded for it
    code = (
        "import sys; from collector.cli import main\n"
        "try: main(['list', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'bcc', 'drgn', 'elftools', 'zstandard', 'yaml'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
