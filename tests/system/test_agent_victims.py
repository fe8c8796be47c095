"""Programs really die under the agent, and each death becomes the record that it should be.

Two agents, which have both BPF loaders and both ways of the hand-off between them; every victim
dies under each. The other two pairs are those of test_agent_policy.py.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.system.agents import RunningAgent, agent, functions
from tests.system.needs import by_socket
from tests.system.snapshots import NO_32_BIT
from tests.system.victims import SOURCES, Victim, build, descendants, running

NOBODY = 65534
CONFIG = """
defaults: {limit: none}
rules:
  - name: exits
    match: {cause: exit, exe: ["*/exit_status", "*/handled"]}
    capture: record
"""
SEGV_MAPERR, BUS_ADRERR, ILL_ILLOPN, FPE_INTDIV, SYS_SECCOMP, SI_KERNEL = 1, 2, 2, 1, 1, 0x80
SI_TKILL = -6


@pytest.fixture(
    scope="module",
    params=[by_socket(("core", "socket")), ("bcc", "pipe")],
    ids="-".join,
)
def watching(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningAgent]:
    loader, backend = request.param
    folder = tmp_path_factory.mktemp("agent")
    with agent(folder, config=CONFIG, backend=backend, loader=loader) as running_agent:
        yield running_agent


def facts(record: dict[str, Any]) -> dict[str, Any]:
    """What a test compares: all but what differs from run to run."""
    keys = (
        *("cause", "comm", "signal_name", "si_code", "si_addr", "sender", "last_fault"),
        *("exit_code", "core_bit", "oom", "late", "thread_name", "threads", "uid", "rule"),
        *("capture_wanted", "capture", "outcome", "core", "release", "release_reason"),
        *("reason", "abort_message", "lost"),
    )
    found = {key: record[key] for key in keys}
    if record["release"] is None:
        # nobody held it: who is reaped at once is gone from /proc, and with cgroup v1 beside v2
        # its id does not tell its cgroup
        found["lost"] = {part: why for part, why in record["lost"].items() if part != "cgroup"}
    return found


def crash(**differs: Any) -> dict[str, Any]:
    """The facts of a core-dumping death under the default policy."""
    usual = {
        "cause": "signal",
        "sender": None,
        "last_fault": None,
        "exit_code": None,
        "core_bit": True,
        "oom": False,
        "late": False,
        "threads": 1,
        "uid": 0,
        "rule": "defaults",
        "capture_wanted": "full",
        "capture": "full",
        "outcome": "complete",
        "core": "core.zst",
        "release": "instant",
        "release_reason": "room for a successor",
        "abort_message": None,
        "lost": {},
    }
    return {"thread_name": differs["comm"], **usual, **differs}


def unheld(**differs: Any) -> dict[str, Any]:
    """The facts of a death that the kernel hands over to nobody."""
    record = {
        "core_bit": False,
        "threads": None,
        "capture": "record",
        "outcome": "recorded",
        "core": None,
        "release": None,
        "release_reason": None,
    }
    return crash(**{**record, **differs})


def die(watching: RunningAgent, victim: Victim) -> dict[str, Any]:
    """Let it die; its record."""
    victim.go()
    victim.wait()
    return watching.record(victim.pid)


def debugger(record: dict[str, Any], core: Path, *commands: str) -> str:
    """What gdb prints for commands on a core."""
    arguments = [part for command in commands for part in ("-ex", command)]
    done = subprocess.run(
        [
            *("gdb", "-q", "-nx", "-batch", record["exe"], str(core)),
            "-ex",
            "echo begin\\n",
            *arguments,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.partition("begin\n")[2]  # it greets with the innermost frame


def debugger_functions(output: str) -> list[str]:
    return re.findall(r"^#\d+ +(?:0x[0-9a-f]+ in )?([^ ]+) \(", output, re.MULTILINE)


class Crash(NamedTuple):
    """A victim and what is to be said of it.

    In `reason`, `{si_addr:#x}` stands for the record's address and `{line}` for the innermost
    frame's line. An address may be given as "ip", "sp" (a page from it) or "page" (aligned).
    """

    name: str
    arguments: tuple[str, ...]
    expected: dict[str, Any]
    functions: list[str]


def self_sent(victim: Victim, name: str) -> dict[str, Any]:
    return {"pid": victim.pid, "comm": name, "uid": 0}


FAULTS = [
    Crash(
        "null_main",
        (),
        crash(
            comm="null_main",
            signal_name="SIGSEGV",
            si_code=SEGV_MAPERR,
            si_addr=0,
            reason="SIGSEGV: wrote to address 0x0 in `inner` (null_main.c:6)",
        ),
        ["inner", "outer", "main"],
    ),
    Crash(
        "null_worker",
        (),
        crash(
            comm="null_worker",
            thread_name="worker-3",
            threads=5,
            signal_name="SIGSEGV",
            si_code=SEGV_MAPERR,
            si_addr=0,
            reason="SIGSEGV: wrote to address 0x0 in `count_request` (null_worker.c:16),"
            " thread `worker-3`",
        ),
        ["count_request", "serve_request", "serve_client", "worker"],
    ),
    Crash(
        "stack_overflow",
        (),
        crash(
            comm="stack_overflow",
            signal_name="SIGSEGV",
            si_code=SEGV_MAPERR,
            si_addr="sp",
            reason="SIGSEGV: stack overflow at address {si_addr:#x} in `recurse`"
            " (stack_overflow.c:{line})",
            lost={"outer_frames": "only the innermost 256 frames are kept"},
        ),
        ["recurse"] * 256,
    ),
    Crash(
        "bus_truncated",
        (),
        crash(
            comm="bus_truncated",
            signal_name="SIGBUS",
            si_code=BUS_ADRERR,
            si_addr="page",
            reason="SIGBUS: read from address {si_addr:#x}, beyond the end of its mapped file,"
            " in `read_mapped` (bus_truncated.c:8)",
        ),
        ["read_mapped", "main"],
    ),
    Crash(
        "illegal",
        (),
        crash(
            comm="illegal",
            signal_name="SIGILL",
            si_code=ILL_ILLOPN,
            si_addr="ip",
            reason="SIGILL: executed an illegal instruction in `undefined` (illegal.c:6)",
        ),
        ["undefined", "main"],
    ),
    Crash(
        "divide",
        (),
        crash(
            comm="divide",
            signal_name="SIGFPE",
            si_code=FPE_INTDIV,
            si_addr="ip",
            reason="SIGFPE: integer divide by zero in `divide` (divide.c:6)",
        ),
        ["divide", "main"],
    ),
    Crash(
        "breakpoint",
        (),
        crash(
            comm="breakpoint",
            signal_name="SIGTRAP",
            si_code=SI_KERNEL,
            si_addr=None,
            reason="SIGTRAP: hit a breakpoint or trap instruction in `stop_here` (breakpoint.c:7)",
        ),
        ["stop_here", "main"],
    ),
    Crash(
        "threads",
        ("1000",),
        crash(
            comm="threads",
            thread_name="crasher",
            threads=1001,
            signal_name="SIGSEGV",
            si_code=SEGV_MAPERR,
            si_addr=0,
            reason="SIGSEGV: wrote to address 0x0 in `crash` (threads.c:13), thread `crasher`",
        ),
        ["crash", "crasher"],
    ),
    Crash(
        "mappings",
        ("50000",),
        crash(
            comm="mappings",
            signal_name="SIGSEGV",
            si_code=SEGV_MAPERR,
            si_addr=0,
            reason="SIGSEGV: wrote to address 0x0 in `crash` (mappings.c:8)",
        ),
        ["crash", "main"],
    ),
    Crash(
        "resident",
        ("2048", "16"),
        crash(
            comm="resident",
            threads=17,
            signal_name="SIGSEGV",
            si_code=SEGV_MAPERR,
            si_addr=0,
            reason="SIGSEGV: wrote to address 0x0 in `crash` (resident.c:14)",
        ),
        ["crash", "main"],
    ),
]
ABORTS = [
    Crash(
        "heap_abort",
        ("16",),
        {"reason": "SIGABRT: abort() called from `check_invariant` (heap_abort.c:13)"},
        ["check_invariant", "run", "main"],
    ),
    Crash(
        "double_free",
        (),
        {
            "reason": "SIGABRT: free(): double free detected in tcache 2,"
            " in `release` (double_free.c:6)",
            "abort_message": "free(): double free detected in tcache 2",
        },
        ["release", "main"],
    ),
    Crash(
        "uncaught",
        (),
        {
            "reason": "SIGABRT: uncaught C++ exception `std::runtime_error`: no such item,"
            " thrown from `shop::Order::place(int)` (uncaught.cpp:13)"
        },
        ["shop::Order::place(int)", "main"],
    ),
]


def named(cases: list[Crash]) -> list[str]:
    return [case.name for case in cases]


@pytest.mark.parametrize("case", FAULTS, ids=named(FAULTS))
def test_a_fault(watching: RunningAgent, case: Crash, tmp_path: Path) -> None:
    # GIVEN a program under the eyes of the agent
    with running(case.name, *case.arguments, cwd=tmp_path) as victim:
        # WHEN an instruction of its own kills it
        record = die(watching, victim)
    # THEN the record says which one, why, and that all of it was kept
    expected = dict(case.expected)
    if isinstance(place := expected["si_addr"], str):
        low = {"sp": record["sp"] - 4096, "ip": record["ip"], "page": record["si_addr"] & -4096}
        high = {"sp": record["sp"] + 4096, "ip": record["ip"], "page": record["si_addr"] & -4096}
        assert low[place] <= record["si_addr"] <= high[place]
        expected["si_addr"] = record["si_addr"]
    line = record["frames"][0]["line"]
    expected["reason"] = expected["reason"].format(si_addr=record["si_addr"], line=line)
    assert facts(record) == expected
    assert functions(record) == case.functions
    # AND it was held for a moment only
    assert 0 < record["held_ms"] < 1000


@pytest.mark.parametrize("case", ABORTS, ids=named(ABORTS))
def test_an_abort(watching: RunningAgent, case: Crash, tmp_path: Path) -> None:
    # GIVEN a program that finds its own state broken
    with running(case.name, *case.arguments, cwd=tmp_path) as victim:
        # WHEN it aborts
        record = die(watching, victim)
    # THEN the record says what was wrong and who called abort()
    expected = crash(
        comm=case.name,
        signal_name="SIGABRT",
        si_code=SI_TKILL,
        si_addr=None,
        sender=self_sent(victim, case.name),
        **case.expected,
    )
    assert facts(record) == expected
    assert functions(record) == case.functions


def test_the_cores_are_good_for_a_debugger(watching: RunningAgent, tmp_path: Path) -> None:
    # GIVEN the core of a crash in a worker thread among 200
    with running("threads", "200", cwd=tmp_path) as victim:
        record = die(watching, victim)
    core = watching.core(record, tmp_path / "core")
    # THEN gdb shows the thread that died first, with its whole backtrace
    innermost = debugger_functions(debugger(record, core, "bt"))
    assert innermost == ["crash", "crasher", "start_thread", "clone3"]
    # AND every other thread where it slept
    everybody = debugger(record, core, "thread apply all -q bt")
    stacks = Counter(
        name for name in debugger_functions(everybody) if name in ("crash", "sleeper", "main")
    )
    assert stacks == {"crash": 1, "sleeper": 199, "main": 1}


def test_the_memory_is_in_the_core(watching: RunningAgent, tmp_path: Path) -> None:
    # GIVEN the core of a process with much memory, each page of which holds its own number
    with running("resident", "512", "2", cwd=tmp_path) as victim:
        record = die(watching, victim)
    core = watching.core(record, tmp_path / "core")
    # THEN its first and its last word are in the core
    output = debugger(record, core, "frame 1", "print area[0]", "print area[(512 << 17) - 1]")
    assert re.findall(r"^\$\d = (\d+)$", output, re.MULTILINE) == ["1", str((512 << 8) - 1 | 1)]


def test_a_process_without_its_main_thread(watching: RunningAgent, tmp_path: Path) -> None:
    # GIVEN a process whose main() ended by pthread_exit(3), and which goes on
    with running("probe_leaderless", cwd=tmp_path) as victim:
        # WHEN it crashes
        os.kill(victim.pid, signal.SIGSEGV)
        assert victim.wait() == -signal.SIGSEGV
    record = watching.record(victim.pid)
    # THEN its core is whole
    assert (record["capture"], record["threads"], record["lost"]) == ("full", 1, {})
    core = watching.core(record, tmp_path / "core")
    assert "in survivor (" in debugger(record, core, "thread apply all bt")
    # AND what it had open is told, as far as there was time for that
    assert record["descriptors_open"] in (3, None)  # Linux tells since 6.2
    assert {one["kind"] for one in record["descriptors"]} <= {"pipe", "device"}


def test_a_limit_of_one_byte_for_its_core(watching: RunningAgent, tmp_path: Path) -> None:
    # GIVEN a process whose RLIMIT_CORE is one byte, which helpers of the kernel have: core(5)
    with running("null_main", cwd=tmp_path) as victim:
        resource.prlimit(victim.pid, resource.RLIMIT_CORE, (1, 1))
        # WHEN it crashes
        record = die(watching, victim)
    # THEN through a pipe its core cannot be had, and that is what the record says
    lost = {"core": "the kernel did not hand it over: its RLIMIT_CORE is one byte"}
    by_pipe = watching.settings.read("core_pattern").startswith("|")
    assert {k: v for k, v in record["lost"].items() if k == "core"} == (lost if by_pipe else {})
    assert record["diagnosis"]["category"] == "null-dereference"


def test_killed_by_another_process(watching: RunningAgent, tmp_path: Path) -> None:
    # GIVEN a process that another one kills
    for number, name in ((signal.SIGKILL, "SIGKILL"), (signal.SIGTERM, "SIGTERM")):
        with running("wait_for_kill", cwd=tmp_path) as victim:
            killer = subprocess.Popen(["/bin/bash", "-c", f"kill -{int(number)} {victim.pid}; :"])
            assert killer.wait() == 0
            assert victim.wait() == -number
        # THEN the record names the killer
        record = watching.record(victim.pid)
        expected = unheld(
            comm="wait_for_kill",
            cause="killed",
            signal_name=name,
            si_code=None,
            si_addr=None,
            sender={"pid": killer.pid, "comm": "bash", "uid": 0},
            reason=f"killed by {name} from `bash` (pid {killer.pid}, uid 0)",
        )
        lost = record["lost"]
        assert facts({**record, "lost": {}}) == expected
        assert lost["core"] == f"{name}: the kernel hands over only signals that dump core"
        assert lost["si_code"] == "the kernel passed none with the signal"


def test_exits_are_recorded_where_a_rule_names_them(watching: RunningAgent, tmp_path: Path) -> None:
    # WHEN a program that a rule names leaves with a status
    with running("exit_status", "3", cwd=tmp_path) as victim:
        record = die(watching, victim)
    # THEN that is on record
    expected = unheld(
        comm="exit_status",
        cause="exit",
        signal_name=None,
        si_code=None,
        si_addr=None,
        exit_code=3,
        thread_name=None,
        rule="exits",
        capture_wanted="record",
        reason="exited with code 3",
    )
    assert facts(record) == expected


def test_a_runtime_that_catches_its_fault_and_leaves(
    watching: RunningAgent, tmp_path: Path
) -> None:
    # WHEN a program handles its SIGSEGV and leaves by exit(1)
    with running("handled", "exit", cwd=tmp_path) as victim:
        record = die(watching, victim)
    # THEN the record has the fault
    fault = record["last_fault"]
    assert {key: fault[key] for key in ("tid", "signal", "si_code", "si_addr")} == {
        "tid": victim.pid,
        "signal": signal.SIGSEGV,
        "si_code": SEGV_MAPERR,
        "si_addr": 0x20,
    }
    expected = unheld(
        comm="handled",
        cause="exit",
        signal_name=None,
        si_code=None,
        si_addr=None,
        exit_code=1,
        last_fault=fault,
        thread_name=None,
        rule="exits",
        capture_wanted="record",
        reason="exited with code 1 after handling SIGSEGV at address 0x20",
    )
    assert facts(record) == expected


def test_a_handler_that_raises_again(watching: RunningAgent, tmp_path: Path) -> None:
    # WHEN a handler restores the default action and raises the signal again
    with running("handled", "reraise", cwd=tmp_path) as victim:
        record = die(watching, victim)
    # THEN the death is the raised signal's, and the fault is not forgotten
    expected = crash(
        comm="handled",
        signal_name="SIGSEGV",
        si_code=SI_TKILL,
        si_addr=None,
        sender=self_sent(victim, "handled"),
        last_fault=record["last_fault"],
        reason="SIGSEGV: accessed address 0x20 in `fault` (handled.c:25),"
        " then raised by its handler",
    )
    assert facts(record) == expected
    assert record["last_fault"]["si_addr"] == 0x20


def test_what_is_no_death_is_not_recorded(watching: RunningAgent, tmp_path: Path) -> None:
    # GIVEN a program that handles its fault and goes on, and one that leaves as asked
    ended = []
    for name, arguments in (("handled", ["return"]), ("exit_status", ["0"])):
        with running(name, *arguments, cwd=tmp_path) as victim:
            victim.go()
            assert victim.wait() == 0
            ended.append(victim.pid)
    # WHEN a later death is on record
    with running("wait_for_kill", cwd=tmp_path) as victim:
        victim.process.kill()
        victim.wait()
    watching.record(victim.pid)
    # THEN they are not
    listed = {death["pid"] for death in watching.listed()}
    assert [pid for pid in ended if pid in listed] == []


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can enter."""
    with tempfile.TemporaryDirectory(prefix="coreward-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_set_user_id_program(watching: RunningAgent, open_folder: Path) -> None:
    # GIVEN a set-user-id program of a plain user: not dumpable, so nobody is handed its death
    program = open_folder / "setuid_null"
    shutil.copy(build("setuid_null"), program)
    program.chmod(0o4755)
    with running("setuid_null", cwd=Path("/"), file=program, uid=NOBODY) as victim:
        # WHEN it crashes
        record = die(watching, victim)
    # THEN it is on record all the same
    expected = unheld(
        comm="setuid_null",
        signal_name="SIGSEGV",
        si_code=SEGV_MAPERR,
        si_addr=0,
        uid=NOBODY,
        reason=record["reason"],
        lost=facts(record)["lost"],
    )
    assert facts(record) == expected
    assert record["reason"].startswith("SIGSEGV: wrote to address 0x0")
    why = "the kernel did not hand it over: not dumpable, as after a change of user"
    assert record["lost"]["core"] == why


def test_a_process_in_namespaces_of_its_own(watching: RunningAgent, tmp_path: Path) -> None:
    # GIVEN a program that exists only in a mount namespace, as pid 2 of its pid namespace
    inside = tmp_path / "inside"
    inside.mkdir()
    program = str(build("null_worker"))
    with running("namespace", str(inside), program, cwd=tmp_path) as victim:
        pid = list(descendants(victim.pid))[-1]
        # WHEN it crashes
        victim.go()
        assert victim.wait() == 128 + signal.SIGSEGV
    record = watching.record(pid)
    record["lost"].pop("ancestry", None)  # its parent, the first process in there, ends with it
    # THEN the record has both its pids, and names from the file that is gone with the namespace
    expected = crash(
        comm="null_worker",
        thread_name="worker-3",
        threads=5,
        signal_name="SIGSEGV",
        si_code=SEGV_MAPERR,
        si_addr=0,
        reason="SIGSEGV: wrote to address 0x0 in `count_request` (null_worker.c:16),"
        " thread `worker-3`",
    )
    assert facts(record) == expected
    assert (record["ns_pid"], record["container"]) == (2, True)
    assert record["exe"] == str(inside / "null_worker")
    assert functions(record) == ["count_request", "serve_request", "serve_client", "worker"]


def has(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


@pytest.mark.parametrize(
    ("name", "arguments", "comm", "signal_name", "reason"),
    [
        pytest.param(
            *("py_crash.py", ["segv"], "python3", "SIGSEGV"),
            r"SIGSEGV: read from address 0x10 in `__strlen_\w+` \(.+\), called from `crash`"
            r" \(py_crash\.py:12\)",
            id="python-segv",
        ),
        pytest.param(
            *("py_crash.py", ["abort"], "python3", "SIGABRT"),
            r"SIGABRT: abort\(\) called from `crash` \(py_crash\.py:11\)",
            id="python-abort",
        ),
        pytest.param(
            *("node_crash.js", [], "node", "SIGABRT"),
            r"SIGABRT: abort\(\) called from `node::Abort\(.+\)` \(node\)",
            id="node",
            marks=has("node"),
        ),
        pytest.param(
            *("Crash", [], "java", "SIGABRT"),
            r"SIGABRT: abort\(\) called from `os::abort\(.+ \(libjvm\.so\), thread `java`,"
            r" after handling SIGSEGV at address 0x0",
            id="java",
            marks=has("javac"),
        ),
    ],
)
def test_a_runtime(
    watching: RunningAgent,
    name: str,
    arguments: list[str],
    comm: str,
    signal_name: str,
    reason: str,
    tmp_path: Path,
) -> None:
    # GIVEN a program in an interpreter or a virtual machine
    with running(name, *arguments, cwd=tmp_path) as victim:
        # WHEN its runtime dies
        record = die(watching, victim)
    # THEN the record tells it by the runtime's own functions, and the whole memory was kept
    assert re.fullmatch(reason, record["reason"])
    language = {"node": "JavaScript", "java": "Java"}.get(comm)
    lost = {"interpreted_frames": f"only its runtime knows those of {language}"} if language else {}
    assert record["runtime"]["name"] == comm.rstrip("3")
    assert re.fullmatch(r"\d+\.\d+\.\d+", record["runtime"]["version"])
    keys = ("cause", "comm", "signal_name", "capture", "outcome", "release", "lost")
    assert {key: record[key] for key in keys} == {
        "cause": "signal",
        "comm": comm,
        "signal_name": signal_name,
        "capture": "full",
        "outcome": "complete",
        "release": "instant",
        "lost": lost,
    }


@has("javac")
def test_the_report_of_java(watching: RunningAgent, tmp_path: Path) -> None:
    # GIVEN a Java program whose virtual machine writes a report into the current folder
    with running("Crash", "report", cwd=tmp_path) as victim:
        # WHEN it dies
        record = die(watching, victim)
    # THEN the record names it, and has a copy
    report = tmp_path / f"hs_err_pid{victim.pid}.log"
    assert (record["runtime"]["report"], record["runtime"]["lost"]) == (str(report), None)
    kept = watching.store / "crashes" / record["id"] / record["runtime"]["report_file"]
    assert kept.read_text() == report.read_text()
    assert f"its report was {report}" in watching.command("info", record["id"])


def test_functions_of_python(watching: RunningAgent, tmp_path: Path) -> None:
    # GIVEN a Python program WHEN a thread of it dies in C code, below a function that C code called
    with running("py_crash.py", "other", cwd=tmp_path) as victim:
        record = die(watching, victim)
    # THEN its functions are in the record, each with its line, before the native frame that runs it
    script = str(SOURCES / "py_crash.py")
    frames = record["frames"]
    own = [(f["function"], f["line"]) for f in frames if f["file"] == script]
    assert own == [
        ("crash", 12),
        ("through_c.<locals>.<lambda>", 16),
        ("through_c", 16),
        ("in_thread", 20),
    ]
    told = [number for number, frame in enumerate(frames) if frame["language"] == "python"]
    assert {frames[number]["file"] for number in told} >= {script}
    runs = [frames[n + 1]["function"] for n in told if frames[n + 1]["language"] is None]
    assert set(runs) == {"_PyEval_EvalFrameDefault"}
    assert record["signature"]["text"].endswith("| crash")
    assert record["lost"] == {}
    # AND `bt --all`, from the core, has the same ones
    shown = json.loads(watching.command("bt", record["id"], "--all", "--json"))
    assert shown["threads"][0]["frames"] == frames


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("panic", "Go panic: no order 7, in `main.place` (gopanic.go:20)"),
        ("deadlock", "Go panic: all goroutines are asleep - deadlock!"),
    ],
)
@has("go")
def test_a_go_program_without_symbols(
    watching: RunningAgent, how: str, reason: str, tmp_path: Path
) -> None:
    # GIVEN a Go program with goroutines WHEN it panics
    with running("gopanic", how, cwd=tmp_path) as victim:
        record = die(watching, victim)
    # THEN the record has what it said, and where, by the names that its runtime has
    said = record["reason"].replace(", thread `gopanic`", "")  # on which one Go decides
    assert said == f"SIGABRT: {reason}"
    assert (record["diagnosis"]["category"], record["lost"]) == ("go-panic", {})
    # AND its goroutines, those at one place together
    found = record["goroutines"]
    most = found["groups"][0]
    assert (most["state"], most["count"]) == ("waiting", 20)
    names = [frame["function"] for frame in most["frames"]]
    assert names[:4] == ["runtime.gopark", "runtime.chanrecv", "runtime.chanrecv1", "main.worker"]
    assert found["states"].get("running", 0) == (how != "deadlock")
    # AND `bt --all`, from the core, has the same ones
    shown = json.loads(watching.command("bt", record["id"], "--all", "--json"))
    assert shown["goroutines"] == found


def test_a_32_bit_process(watching: RunningAgent, tmp_path: Path) -> None:
    # GIVEN a 32-bit process WHEN it dies
    with running("bits32", cwd=tmp_path) as victim:
        record = die(watching, victim)
    # THEN its record says what happened, and that there is no core of such a process
    assert (record["comm"], record["signal"], record["si_addr"]) == ("bits32", 11, 16)
    assert (record["core"], record["capture"], record["outcome"]) == (None, "record", "reduced")
    assert record["lost"] == {"core": NO_32_BIT, "frames": NO_32_BIT}


def test_the_agent_stays_small(watching: RunningAgent) -> None:
    """Last of the module: after all these deaths."""
    status = Path(f"/proc/{watching.process.pid}/status").read_text()
    resident = int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) << 10
    assert resident < 60 << 20
    # AND it holds on to nothing of the dead
    descriptors = [os.readlink(link) for link in Path(f"/proc/{watching.process.pid}/fd").iterdir()]
    assert [name for name in descriptors if re.match(r"/proc/\d+/(mem|pagemap|root)", name)] == []
