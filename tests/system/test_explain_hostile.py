"""Explaining cores that are damaged or hostile: it is bounded, and the record says what failed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from collector.explain.run import explain_core
from collector.explain.types import Explanation
from tests.system.cores import KernelCore, kernel_core

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> KernelCore:
    return kernel_core("null_main", folder=tmp_path_factory.mktemp("core"))


def lost(explanation: Explanation) -> str:
    """Why there are no frames; there must be none, then."""
    assert explanation.frames is None
    return explanation.lost["frames"]


def children() -> set[str]:
    """Pids of this process's children, zombies among them."""
    lists = Path("/proc/self/task").glob("*/children")
    return {pid for one in lists for pid in one.read_text().split()}


def test_what_is_no_core(tmp_path: Path) -> None:
    # GIVEN files that are anything but a core
    random_bytes, pipe = tmp_path / "random", tmp_path / "pipe"
    random_bytes.write_bytes(random.Random(1).randbytes(1 << 20))
    os.mkfifo(pipe)
    # THEN each is refused in words
    assert lost(explain_core(random_bytes)) == "not a core: no 64-bit little-endian ELF file"
    assert lost(explain_core(pipe)) == f"{pipe} is not a regular file"
    missing = tmp_path / "missing"
    assert lost(explain_core(missing)) == f"[Errno 2] No such file or directory: '{missing}'"


def test_more_descriptors_than_select_takes(core: KernelCore) -> None:
    # GIVEN a process that has used up all numbers below 1,100
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, use_all_descriptors())
        while True:
            fd = os.open("/dev/null", os.O_RDONLY)
            stack.callback(os.close, fd)
            if fd >= 1100:
                break
        # THEN what it explains is explained all the same
        frames = explain_core(core.path).frames
    assert frames and frames[0].function == "inner"


def use_all_descriptors() -> tuple[int, int]:
    """Raise the soft limit to the hard one; what they were."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    return before


def test_truncated_cores(core: KernelCore, tmp_path: Path) -> None:
    # GIVEN a core that was cut off within its header, its notes, its memory
    image, cut = core.path.read_bytes(), tmp_path / "cut"
    outcomes = []
    for size in (0, 40, 64, 1000, 4096, 100_000):
        cut.write_bytes(image[:size])
        explanation = explain_core(cut)
        outcomes.append((explanation.frames is None, "frames" in explanation.lost))
    # THEN none of them raises, and no frames are invented
    assert outcomes[:4] == [(True, True)] * 4
    assert all(none == named for none, named in outcomes)


def test_fuzzed_headers_and_notes(core: KernelCore, tmp_path: Path) -> None:
    # GIVEN cores with some bytes of their headers and notes overwritten
    image, chance = core.path.read_bytes(), random.Random(20)
    for _ in range(20):
        damaged = bytearray(image)
        for _ in range(chance.randrange(1, 40)):
            damaged[chance.randrange(16, 8192)] = chance.randrange(256)
        (tmp_path / "fuzzed").write_bytes(damaged)
        # THEN there are frames, or a reason why there are none
        explanation = explain_core(tmp_path / "fuzzed", all_threads=True)
        assert (explanation.frames is None) == ("frames" in explanation.lost)


def test_the_time_is_bounded(core: KernelCore) -> None:
    # GIVEN less time than starting Python takes
    before = children()
    explanation = explain_core(core.path, timeout=0.005)
    # THEN the child is killed and reaped
    assert lost(explanation) == "explaining took longer than 0.005 seconds"
    assert children() <= before


def test_the_memory_is_bounded(core: KernelCore, tmp_path: Path) -> None:
    # GIVEN a core whose notes claim to be 200 MiB
    image = bytearray(core.path.read_bytes())
    phoff = struct.unpack_from("<Q", image, 32)[0]
    assert struct.unpack_from("<I", image, phoff)[0] == 4  # PT_NOTE
    struct.pack_into("<Q", image, phoff + 32, 200 << 20)
    greedy = tmp_path / "greedy"
    greedy.write_bytes(image)
    os.truncate(greedy, 300 << 20)
    # WHEN the child may have 96 MiB
    explanation = explain_core(greedy, memory=96 << 20)
    # THEN it fails, without having had more
    assert lost(explanation).endswith(("MemoryError", "Cannot allocate memory", "out of memory"))
    assert explanation.peak_rss < 200 << 20


CONFINED = """
import ctypes, fcntl, json, os, resource, socket, sys, termios, threading
from pathlib import Path
from collector.arch.syscalls import syscall_number
from collector.explain.confine import confine

folder, parent = sys.argv[1], os.getppid()
libc = ctypes.CDLL(None, use_errno=True)
namespace = os.open("/proc/self/ns/net", os.O_RDONLY)  # from before, as its files are
there = os.open(f"{folder}/open", os.O_RDONLY)
confine(parent, 1 << 30, 10)

def call(name, *arguments):
    words = [a.encode() if isinstance(a, str) else a for a in arguments]
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in words]
    if libc.syscall(ctypes.c_long(syscall_number(name)), *words) < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))

def outcome(action):
    try:
        action()
    except OSError as error:
        return error.strerror
    return "allowed"
"""

STATUS = """
status = dict(line.split(":\\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
thread = threading.Thread(target=len, args=([],))
print(json.dumps({
    "pid": os.getpid(),
    "ids": status["Uid"].split() + status["Gid"].split(),
    "groups": status["Groups"].split(),
    "capabilities": [int(status[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")],
    "no_new_privs": status["NoNewPrivs"],
    "nice": os.getpriority(os.PRIO_PROCESS, 0),
    "reads a file of root": outcome(lambda: open("/etc/shadow").close()),
    "looks into a folder of root": outcome(lambda: os.listdir("/root")),
    "has threads": outcome(lambda: (thread.start(), thread.join())),
}))
"""

# What somebody who has taken it over would try, by what he wants
TRIED = {
    "write files": [
        "open(f'{folder}/open', 'a')",
        "os.open(f'{folder}/open', os.O_RDONLY | os.O_TRUNC)",
        "os.open(f'{folder}/new', os.O_RDONLY | os.O_CREAT)",
        "os.open(folder, os.O_TMPFILE | os.O_RDWR)",
        "os.open(f'/proc/self/fd/{there}', os.O_WRONLY)",
        "os.open('/proc/self/mem', os.O_RDWR)",
        "call('openat', -100, f'{folder}/open', os.O_ACCMODE)",
        "call('creat', f'{folder}/new', 0o600)",
        "call('openat2', -100, f'{folder}/new', (ctypes.c_uint64 * 3)(os.O_CREAT, 0o600, 0), 24)",
        "os.mkdir(f'{folder}/new')",
        "os.mkfifo(f'{folder}/new')",
        "os.symlink('/', f'{folder}/new')",
        "os.link(f'{folder}/open', f'{folder}/new')",
        "os.rename(f'{folder}/open', f'{folder}/new')",
        "os.unlink(f'{folder}/open')",
        "os.rmdir(folder)",
        "os.truncate(f'{folder}/open', 0)",
        "os.chmod(f'{folder}/open', 0)",
        "os.fchmod(there, 0)",
        "os.chown(f'{folder}/open', -1, -1)",
        "os.utime(f'{folder}/open')",
        "os.setxattr(f'{folder}/open', 'user.x', b'x')",
        "os.memfd_create('new')",
    ],
    "reach others": [
        *(f"socket.socket({f})" for f in ("1", "2", "10", "16, 3", "17, 3", "40")),
        "socket.socketpair()",
        "call('connect', 0, (ctypes.c_char * 110)(1), 110)",
        "call('io_uring_setup', 8, (ctypes.c_char * 120)())",
        "call('bpf', 0, 0, 0)",
        "call('perf_event_open', (ctypes.c_char * 128)(), 0, -1, -1, 0)",
        "call('userfaultfd', 1)",
        "call('keyctl', 0, -3, 0)",
        "call('add_key', 'user', 'x', 'x', 1, -2)",
        "call('shmget', 0, 4096, 0o1600)",
        "call('msgget', 0, 0o1600)",
        "call('mq_open', 'x', 0o102, 0o600, 0)",
        "call('inotify_init')",
        "call('fanotify_init', 0, 0)",
        "call('open_by_handle_at', 3, ctypes.create_string_buffer(64), 0)",
    ],
    "make others wait": [
        "fcntl.flock(there, fcntl.LOCK_SH)",
        "fcntl.lockf(there, fcntl.LOCK_SH | fcntl.LOCK_NB)",
        "fcntl.fcntl(there, fcntl.F_SETLEASE, fcntl.F_RDLCK)",
        "fcntl.fcntl(there, fcntl.F_NOTIFY, 1)",
        "fcntl.ioctl(there, termios.TIOCSTI, b'x')",
        "os.setpriority(os.PRIO_PROCESS, 0, 0)",
        "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))",
    ],
    "harm others": [
        "os.kill(parent, 0)",
        "os.kill(os.getpid(), 0)",
        "call('tkill', parent, 0)",
        "call('tgkill', parent, parent, 0)",
        "call('rt_sigqueueinfo', parent, 1, ctypes.create_string_buffer(128))",
        "os.pidfd_open(parent)",
        "call('pidfd_send_signal', there, 0, 0, 0)",
        "call('ptrace', 0x4206, parent, 0, 0)",
        "call('process_vm_readv', parent, 0, 0, 0, 0, 0)",
        "call('process_vm_writev', parent, 0, 0, 0, 0, 0)",
        "os.open(f'/proc/{parent}/mem', os.O_RDONLY)",
        "call('prlimit64', parent, 7, 0, ctypes.create_string_buffer(16))",
    ],
    "be more": [
        "os.execv('/bin/true', ['true'])",
        "call('execveat', -100, '/bin/true', 0, 0, 0)",
        "os.fork()",
        "call('vfork')",
        "call('clone', 17, 0, 0, 0, 0)",
        "call('clone3', (ctypes.c_char * 88)(), 88)",
        *(f"call('unshare', {bit})" for bit in (0x10000000, 0x20000, 0x40000000, 0x200)),
        "call('clone', 0x10000000 | 0x10000, 0, 0, 0, 0)",
        "call('setns', namespace, 0)",
        "call('mount', 'x', folder, 'tmpfs', 0, 0)",
        "call('umount2', '/proc', 2)",
        "call('open_tree', -100, '/', 1)",
        "call('fsopen', 'tmpfs', 0)",
        "call('pivot_root', folder, folder)",
        "os.chroot(folder)",
        "os.setuid(0)",
        "os.setgid(0)",
        "os.setgroups([0])",
        "call('capset', (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(-1, -1))",
        "call('prctl', 4, 1, 0, 0, 0)",
        "call('prctl', 22, 2, 0, 0, 0)",
        "call('seccomp', 0, 0, 0)",
        "call('personality', 0x0400000)",
    ],
}


def confined(code: str, folder: Path, first: str = "") -> subprocess.CompletedProcess[bytes]:
    """first: done before it is confined."""
    script = CONFINED.replace("confine(parent", f"{first}\nconfine(parent") + code
    command = [sys.executable, "-c", script, str(folder)]
    return subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.PIPE)


def allowed(attempts: list[str], folder: Path, first: str = "") -> dict[str, str]:
    """Those of the attempts that are not refused, and what became of them."""
    tries = [f"{attempt!r}: outcome(lambda: {attempt})" for attempt in attempts]
    done = confined(f"print(json.dumps({{{', '.join(tries)}}}))", folder, first)
    refused = ("Operation not permitted", "Permission denied", "Function not implemented")
    return {what: why for what, why in json.loads(done.stdout).items() if why not in refused}


@pytest.fixture
def open_folder(tmp_path: Path) -> Path:
    """A folder that everybody can write, with a file that everybody can write."""
    tmp_path.chmod(0o777)
    (tmp_path / "open").write_text("text")
    (tmp_path / "open").chmod(0o666)
    return tmp_path


def test_what_the_child_may_still_do(open_folder: Path) -> None:
    # WHEN a process of root confines itself
    found = json.loads(confined(STATUS, open_folder).stdout)
    # THEN it is a user that nobody else is, and can read
    own = str(0x70000000 + found.pop("pid"))
    assert found == {
        "ids": [own] * 8,
        "groups": [],
        "capabilities": [4, 4, 0, 0],
        "no_new_privs": "1",
        "nice": 19,
        "reads a file of root": "allowed",
        "looks into a folder of root": "allowed",
        "has threads": "allowed",
    }


@pytest.mark.parametrize("wish", TRIED)
def test_what_the_child_can_do_no_more(wish: str, open_folder: Path) -> None:
    # WHEN somebody who has taken it over tries everything, in a folder that is open to all
    # THEN nothing of it goes
    assert allowed(TRIED[wish], open_folder) == {}
    assert [path.name for path in open_folder.iterdir()] == ["open"]
    assert (open_folder / "open").read_text() == "text"


def test_other_ways_into_the_kernel(open_folder: Path) -> None:
    # WHEN a call is made by its number of x32 THEN that is the end of the process
    x32 = "libc.syscall(ctypes.c_long(0x40000000 + 39))"
    assert confined(x32, open_folder).returncode == -signal.SIGSYS
    # AND it can abort, as libraries do
    assert confined("os.abort()", open_folder).returncode == -signal.SIGABRT


def test_without_root_it_is_confined_as_well(open_folder: Path) -> None:
    # GIVEN a user's own child, which has no user to become
    user = "os.setgroups([]); os.setgid(4242); os.setuid(4242)"
    attempts = [a for wish in ("write files", "reach others", "be more") for a in TRIED[wish]]
    assert allowed(attempts, open_folder, user) == {}


def test_the_agent_side_loads_nothing_heavy() -> None:
    # GIVEN a process that imports what the agent imports
    code = (
        "import sys, collector.explain.run, collector.explain.reason; print('drgn' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.PIPE
    )
    assert done.stdout == b"False\n"
