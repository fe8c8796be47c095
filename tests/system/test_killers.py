"""Who killed a process, whole: also who is gone by then, and which part of the kernel it was."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.agents import RunningAgent, agent
from tests.system.memory_cgroups import ROOT as CGROUPS
from tests.system.scratch import NAME
from tests.system.victims import PATIENCE, running, wait_until

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.beside,
]
LOADERS = ("core", "bcc")


@pytest.fixture(scope="module", params=LOADERS)
def watching(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningAgent]:
    folder = tmp_path_factory.mktemp("agent")
    with agent(
        folder, config="defaults: {limit: none}", backend="none", loader=request.param
    ) as one:
        yield one
        assert not [line for line in one.lines if "Traceback" in line]


def parents_of(pid: int) -> list[dict[str, Any]]:
    """As /proc tells, from `pid` itself upwards."""
    found = []
    while pid:
        comm, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
        found.append({"pid": pid, "comm": comm.partition("(")[2]})
        pid = int(rest.split()[1])
    return found


def child_of(pid: int) -> int:
    """The only child of a process, once there is one."""
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    wait_until(lambda: bool(listed.read_text()), f"process {pid} has no child")
    return int(listed.read_text())


def test_a_killer_that_is_gone(watching: RunningAgent, tmp_path: Path) -> None:
    # GIVEN a process that is killed by another one, which ends at once
    with running("wait_for_kill", cwd=tmp_path) as victim:
        killer = subprocess.Popen(["/bin/kill", "-TERM", str(victim.pid), "--", "%-1 \x1b[31m\xff"])
        killer.wait()
        assert victim.wait() == -signal.SIGTERM
    record = watching.record(victim.pid)
    # THEN its record has all of that one
    found = record["killer"]
    assert found["by"] == "process"
    assert (found["pid"], found["tid"], found["ns_pid"]) == (killer.pid,) * 3
    assert (found["comm"], found["exe"]) == ("kill", os.path.realpath("/bin/kill"))
    assert found["cmdline"] == ["/bin/kill", "-TERM", str(victim.pid), "--", "%-1 \x1b[31m\xff"]
    assert (found["uid"], found["gid"]) == (0, 0)
    # AND those above it, up to the first process
    assert found["parents"] == parents_of(os.getpid())
    assert found["lost"] == {}
    # AND people are shown the same, and nothing that their terminal obeys
    shown = watching.command("info", record["id"])
    assert "killed by     another process\n" in shown
    assert f"  process     kill, pid {killer.pid}\n" in shown
    assert "/bin/kill -TERM" in shown and "\x1b" not in shown
    assert f" < {parents_of(os.getpid())[1]['comm']} (" in shown


def test_long_arguments_are_cut(watching: RunningAgent, tmp_path: Path) -> None:
    with running("wait_for_kill", cwd=tmp_path) as victim:
        script = f"import os; os.kill({victim.pid}, 9)"
        subprocess.run([sys.executable, "-c", script, "x" * 9000], check=True)
        victim.wait()
    killer = watching.record(victim.pid)["killer"]
    assert killer["cmdline"][:3] == [sys.executable, "-c", script]
    assert sum(len(word) + 1 for word in killer["cmdline"]) in (512, 513)
    assert killer["lost"]["cmdline"].startswith("only the first 512 of its 9")


ORPHAN = """
import os, sys
first = os.getpid()
if os.fork():
    os._exit(0)
while os.getppid() == first:
    pass
os.kill(int(sys.argv[1]), 9)
"""


def test_a_killer_whose_parent_is_gone(watching: RunningAgent, tmp_path: Path) -> None:
    # GIVEN a killer whose parent ended before, so that another one has it
    with running("wait_for_kill", cwd=tmp_path) as victim:
        outer = subprocess.Popen([sys.executable, "-c", ORPHAN, str(victim.pid)])
        assert outer.wait(PATIENCE) == 0
        assert victim.wait() == -signal.SIGKILL
    killer = watching.record(victim.pid)["killer"]
    # THEN it is the one who has it now
    assert killer["pid"] != outer.pid
    assert outer.pid not in [one["pid"] for one in killer["parents"]]
    assert killer["parents"][-1]["pid"] == 1


def test_its_parent_ended(watching: RunningAgent) -> None:
    # GIVEN a process that wants to end with its parent
    command = ["setpriv", "--pdeathsig", "KILL", "sleep", "1000"]
    parent = subprocess.Popen(
        ["/bin/sh", "-c", '"$@" & read line', "sh", *command], stdin=subprocess.PIPE
    )
    child = child_of(parent.pid)
    wait_until(
        lambda: Path(f"/proc/{child}/comm").read_text() == "sleep\n", "setpriv does not exec"
    )
    parent.communicate(b"\n", timeout=PATIENCE)
    record = watching.record(child)
    assert (record["killer"]["by"], record["killer"]["pid"]) == ("parent-death", parent.pid)
    assert record["reason"] == (
        f"SIGKILL: its parent ended, as PR_SET_PDEATHSIG asks for: `sh` (pid {parent.pid}, uid 0)"
    )


def test_the_first_process_of_its_namespace_ended(watching: RunningAgent) -> None:
    # GIVEN a pid namespace of two processes
    outer = subprocess.Popen(
        ["unshare", "--pid", "--fork", "/bin/sh", "-c", "sleep 1000 & read line"],
        stdin=subprocess.PIPE,
    )
    first = child_of(outer.pid)
    second = child_of(first)
    # WHEN the first one ends
    outer.communicate(b"\n", timeout=PATIENCE)
    record = watching.record(second)
    # THEN the second one was killed with it, by nobody's signal
    assert (record["cause"], record["sender"]) == ("signal", None)
    killer = record["killer"]
    assert (killer["by"], killer["pid"], killer["ns_pid"]) == ("pid-namespace", first, 1)
    assert record["reason"] == (
        f"SIGKILL: the first process of its pid namespace ended: `sh` (pid {first}, uid 0)"
    )


def test_its_tracer_ended(watching: RunningAgent, tmp_path: Path) -> None:
    seize, exitkill = 0x4206, 1 << 20  # PTRACE_SEIZE, PTRACE_O_EXITKILL <linux/ptrace.h>
    with running("wait_for_kill", cwd=tmp_path) as victim:
        code = f"import ctypes; ctypes.CDLL(None).ptrace({seize}, {victim.pid}, None, {exitkill})"
        tracer = subprocess.Popen([sys.executable, "-c", code])
        assert tracer.wait(PATIENCE) == 0
        assert victim.wait() == -signal.SIGKILL
    killer = watching.record(victim.pid)["killer"]
    assert (killer["by"], killer["pid"]) == ("tracer", tracer.pid)


def test_its_limit_of_cpu_time(watching: RunningAgent) -> None:
    # GIVEN a process that has a second of CPU time, and no longer
    burner = subprocess.Popen(["prlimit", "--cpu=1:1", "/bin/sh", "-c", "while :; do :; done"])
    assert burner.wait(PATIENCE) == -signal.SIGKILL
    record = watching.record(burner.pid)
    # THEN nobody is blamed for it
    assert (record["cause"], record["sender"]) == ("signal", None)
    assert record["killer"].items() >= {"by": "cpu-limit", "pid": None, "parents": []}.items()
    assert record["reason"] == "SIGKILL: its limit on CPU time was reached (RLIMIT_CPU)"


def test_a_timer_of_its_own(watching: RunningAgent) -> None:
    code = "import signal; signal.setitimer(signal.ITIMER_REAL, 0.01); signal.pause()"
    sleeper = subprocess.Popen([sys.executable, "-c", code])
    assert sleeper.wait(PATIENCE) == -signal.SIGALRM
    record = watching.record(sleeper.pid)
    assert record["killer"]["by"] == "timer"
    assert record["reason"] == "SIGALRM: its timer expired"


def test_its_cgroup_was_killed(watching: RunningAgent, tmp_path: Path) -> None:
    # GIVEN a process in a cgroup of v2
    root = CGROUPS / "unified" if (CGROUPS / "unified").is_dir() else CGROUPS
    group = root / f"{NAME}-killed"
    group.mkdir()
    try:
        with running("wait_for_kill", cwd=tmp_path) as victim:
            (group / "cgroup.procs").write_text(str(victim.pid))
            # WHEN somebody kills all of it
            (group / "cgroup.kill").write_text("1")
            assert victim.wait() == -signal.SIGKILL
    finally:
        group.rmdir()
    record = watching.record(victim.pid)
    assert (record["killer"]["by"], record["killer"]["pid"]) == ("cgroup.kill", os.getpid())
    assert record["reason"].endswith(", by `cgroup.kill`")


@pytest.mark.alone  # a core is dumped
def test_an_exec_that_failed_too_late(watching: RunningAgent, tmp_path: Path) -> None:
    # GIVEN a program with more bytes in its file than in memory
    program = bytearray(Path("/bin/true").read_bytes())
    (offset,), (count,) = (struct.unpack_from(f, program, at) for f, at in (("<Q", 32), ("<H", 56)))
    for number in range(count):
        at = offset + 56 * number
        if struct.unpack_from("<I", program, at)[0] == 1:  # PT_LOAD: p_memsz
            struct.pack_into("<Q", program, at + 40, 1)
    broken = tmp_path / "broken"
    broken.write_bytes(program)
    broken.chmod(0o755)
    # WHEN it is executed, and the kernel finds out when the old program is gone
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", f"exec {broken}"], dict(os.environ))
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGSEGV
    record = watching.record(pid)
    assert record["killer"]["by"] == "exec"
    assert record["reason"] == ("SIGSEGV: execve() failed when the program before was gone already")


@pytest.mark.alone  # a core is dumped
def test_its_filter_of_system_calls(watching: RunningAgent, tmp_path: Path) -> None:
    with running("seccomp", cwd=tmp_path) as victim:
        victim.go()
        assert victim.wait() == -signal.SIGSYS
    assert watching.record(victim.pid)["killer"]["by"] == "seccomp"


def test_who_kills_himself_has_no_killer(watching: RunningAgent) -> None:
    victim = subprocess.Popen(["/bin/sh", "-c", "kill -KILL $$"])
    assert victim.wait() == -signal.SIGKILL
    assert watching.record(victim.pid)["killer"] is None


def test_a_killer_with_a_hostile_name(watching: RunningAgent, tmp_path: Path) -> None:
    # GIVEN a killer whose name, path and arguments are escape sequences
    program = Path(shutil.copy("/bin/sh", tmp_path / "s\x1b]0;x\x07\n"))
    with running("wait_for_kill", cwd=tmp_path) as victim:
        script = f"kill -KILL {victim.pid}; :"
        killer = subprocess.run([program, "-c", script, "\x1b[2J\nkilled by nobody"], check=True)
        assert killer.returncode == 0
        victim.wait()
    record = watching.record(victim.pid)
    assert record["killer"]["exe"] == str(program)
    # THEN what people are shown has none of them, and no line of its own making
    shown = watching.command("info", record["id"])
    assert "\x1b" not in shown and "\x07" not in shown
    assert not [line for line in shown.splitlines() if line.startswith("killed by nobody")]
