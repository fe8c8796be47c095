"""All threads of a core: their names, equal ones together, their variables and registers."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import zstandard

from collector.cli import main
from collector.cli.threads import text, with_record
from collector.elfcore.reader import CoreFile
from collector.errors import StoreError
from collector.explain import kept_threads
from collector.explain.fold import folded, in_short
from collector.explain.run import explain_core
from collector.explain.types import FrameValues, ThreadFrames, Variable
from collector.model import Frame
from collector.store.store import Store
from tests.unit.store_samples import SEGFAULT
from tests.unit.unrun import BASE, STACK, Loaded, Unrun, compiled

_LIBC = "/usr/lib/libc.so.6"
WAIT = [
    Frame(pc=1, function="__futex_abstimed_wait_common", module=_LIBC),
    Frame(pc=2, function="pthread_cond_wait@@GLIBC_2.3.2", module=_LIBC),
    Frame(pc=3, function="worker_loop", module="/opt/app"),
    Frame(pc=4, function="start_thread", module=_LIBC),
]


def thread(tid: int, frames: list[Frame], **more: object) -> ThreadFrames:
    return ThreadFrames(tid=tid, frames=frames, **more)  # type: ignore[arg-type]


def test_the_names_of_threads_are_in_a_core(tmp_path: Path) -> None:
    # GIVEN a process with threads of odd names, and one without
    loaded = Loaded(compiled(tmp_path, ".globl _start\n_start: call _start\n"), BASE)
    process = Unrun(loaded)
    names = ["render-7", "gc \u267b", "two\nlines", "", "cut\\xe2"]
    for number, name in enumerate(names):
        process.thread(10 + number, loaded.at("_start"), STACK + 0x100, name=name)
    core = process.core(tmp_path)
    # THEN they are read from it, and told with their backtraces
    with CoreFile(core) as opened:
        assert [one.name for one in opened.threads] == names
    threads = explain_core(core, all_threads=True).threads or []
    assert [(one.tid, one.name) for one in threads] == [
        (10 + number, name or None) for number, name in enumerate(names)
    ]


def test_equal_stacks_are_folded() -> None:
    # GIVEN four threads, two of which wait at the same place, and two have no frames
    threads = [thread(1, WAIT), thread(2, WAIT[1:]), thread(3, WAIT)]
    threads += [thread(4, [], lost="no stack"), thread(5, [], lost="no stack")]
    # THEN only those with the same frames are put together
    assert [[one.tid for one in group] for group in folded(threads)] == [[1, 3], [2], [4], [5]]


def test_where_a_thread_is_in_short() -> None:
    assert in_short(WAIT) == "pthread_cond_wait <- worker_loop"
    assert in_short(WAIT[2:]) == "worker_loop"
    assert in_short(WAIT[:1]) == "__futex_abstimed_wait_common"
    assert in_short([Frame(pc=1)]) == "no names"


def test_threads_for_people() -> None:
    # GIVEN one that died, ten that wait, and one that waits in another place
    own = [Frame(pc=9, function="in\x1bner", module="/opt/app", file="a.c", line=3)]
    threads = [thread(815, own, name="worker-3")]
    threads += [thread(820 + n, WAIT, name=f"w{n}") for n in range(10)]
    threads.append(thread(812, WAIT[:1]))
    record = msgspec.structs.replace(SEGFAULT, ns_pid=None, frames=None)
    # THEN equal ones are shown once
    assert text(with_record(threads, record), record).splitlines() == [
        "Thread 815 `worker-3`, which died:",
        "#0  0x0000000000000009 in in\\x1bner (a.c:3) [/opt/app]",
        "",
        "10 threads: pthread_cond_wait <- worker_loop",
        "(820 `w0`, 821 `w1`, 822 `w2`, 823 `w3`, 824 `w4`, 825 `w5`, 826 `w6`, 827 `w7` and 2 "
        "more)",
        f"#0  0x0000000000000001 in __futex_abstimed_wait_common [{_LIBC}]",
        f"#1  0x0000000000000002 in pthread_cond_wait@@GLIBC_2.3.2 [{_LIBC}]",
        "#2  0x0000000000000003 in worker_loop [/opt/app]",
        f"#3  0x0000000000000004 in start_thread [{_LIBC}]",
        "",
        "Thread 812:",
        f"#0  0x0000000000000001 in __futex_abstimed_wait_common [{_LIBC}]",
    ]


def test_info_tells_where_the_other_threads_were(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # GIVEN a death of which the backtraces of all threads were kept
    threads = [thread(815, WAIT), *(thread(n, WAIT) for n in range(3)), thread(9, WAIT[:1])]
    with Store(tmp_path, create=True) as store:
        store.put(msgspec.structs.replace(SEGFAULT, ns_pid=None))
        file = store.place(SEGFAULT) / kept_threads.FILE
    file.write_bytes(kept_threads.packed(threads))
    # THEN it is shown where most of those were that did not die
    assert main(["info", "--store", str(tmp_path), "latest"]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("The other threads")
    assert lines[at + 1 : at + 4] == [
        "      3  pthread_cond_wait <- worker_loop",
        "      1  __futex_abstimed_wait_common",
        f"         coreward bt {SEGFAULT.id} --all",
    ]
    # AND a damaged file costs nothing else
    file.write_bytes(b"damaged")
    assert main(["info", "--store", str(tmp_path), "latest"]) == 0
    assert "threads.zst: damaged" in capsys.readouterr().out


def test_never_less_than_the_record() -> None:
    # GIVEN a record whose frames have names and lines, also of an inlined function
    inner = Frame(pc=1, function="inner", line=3, file="a.c", module="/memfd:x (deleted)")
    inlined = Frame(pc=2, function="put", line=7, file="a.c", inline=True)
    outer = Frame(pc=2, function="outer", line=9, file="a.c", build_id="00ff")
    last = Frame(pc=3, function="main", line=12, file="a.c")
    record = msgspec.structs.replace(SEGFAULT, ns_pid=7, frames=[inner, inlined, outer, last])
    # AND a core whose files are gone: no names, and in the thread that died not even all frames
    bare = [Frame(pc=1), Frame(pc=2)]
    other = [Frame(pc=2), Frame(pc=5, function="other")]
    # THEN all that the record knows is there, in its thread and in others at the same places
    found = with_record([thread(7, bare), thread(8, other, name="o")], record)
    assert found == [
        thread(7, [inner, inlined, outer, last], name="worker-3"),
        thread(8, [inlined, outer, other[1]], name="o"),
    ]
    # AND so it is if the core's way is another one, found without unwind information
    astray = [Frame(pc=1), Frame(pc=9, scanned=True)]
    assert with_record([thread(7, astray)], record)[0].frames == [inner, inlined, outer, last]
    # AND the variables stay with their frames
    values = [FrameValues(frame=n, variables=[Variable(name=f"v{n}")]) for n in range(2)]
    moved = with_record([thread(7, bare, values=values)], record)[0].values
    assert [(one.frame, one.variables[0].name) for one in moved] == [(0, "v0"), (2, "v1")]
    # AND what the core tells better is not replaced
    further = Frame(pc=4, function="start_thread")
    better = [msgspec.structs.replace(f, module="/opt/x") for f in (inner, outer, last)]
    found = with_record([thread(7, [*better, further])], record)
    assert found[0].frames == [*better, further]


def test_all_threads_are_kept_beside_the_record(tmp_path: Path) -> None:
    # GIVEN a process with three threads, two of which are at the same place
    loaded = Loaded(compiled(tmp_path, ".globl _start\n_start: call _start\n"), BASE)
    process = Unrun(loaded)
    for number, name in enumerate(["first", "second", "third"]):
        at = loaded.at("_start", 5 if number else 0)
        process.thread(10 + number, at, STACK + 0x100, name=name)
    core = process.core(tmp_path)
    # WHEN it is explained where its threads are to be kept
    (tmp_path / "record").mkdir()
    found = explain_core(core, keep=tmp_path / "record")
    assert (found.threads, len(found.frames or []), found.lost) == (None, 1, {})
    # THEN they are in a file there, as they are told otherwise
    threads = explain_core(core, all_threads=True).threads
    assert kept_threads.read(tmp_path / "record") == threads
    assert [one.name for one in threads or []] == ["first", "second", "third"]
    assert {path.name for path in (tmp_path / "record").iterdir()} == {kept_threads.FILE}
    # AND where they cannot be put, that is all that is lost
    gone = explain_core(core, keep=tmp_path / "gone")
    assert gone.frames == found.frames
    assert gone.lost == {"threads": "their backtraces cannot be kept: No such file or directory"}


def test_one_thread_is_in_the_record_alone(tmp_path: Path) -> None:
    loaded = Loaded(compiled(tmp_path, ".globl _start\n_start: call _start\n"), BASE)
    process = Unrun(loaded)
    process.thread(1, loaded.at("_start"), STACK + 0x100)
    (tmp_path / "record").mkdir()
    explain_core(process.core(tmp_path), keep=tmp_path / "record")
    assert kept_threads.read(tmp_path / "record") == []
    assert list((tmp_path / "record").iterdir()) == []


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no zstd",
        zstandard.compress(b"no msgpack"),
        zstandard.compress(
            msgspec.msgpack.encode({"frames": [], "threads": [[1, None, [0], None]]})
        ),
        zstandard.compress(
            msgspec.msgpack.encode({"frames": [{"pc": 1}], "threads": [[1, None, [-1], None]]})
        ),
    ],
)
def test_a_damaged_file_of_threads_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / kept_threads.FILE).write_bytes(data)
    with pytest.raises(StoreError, match=r"threads\.zst: damaged: "):
        kept_threads.read(tmp_path)


def test_other_threads_have_what_was_kept_of_them() -> None:
    # GIVEN a core without its files, and all threads as they were at the death
    kept = [thread(7, WAIT[:2]), thread(8, WAIT, name="o")]
    record = msgspec.structs.replace(SEGFAULT, ns_pid=7, frames=WAIT[:2], thread_name=None)
    bare = [Frame(pc=frame.pc) for frame in WAIT]
    # THEN each thread has its names, and its frames
    assert with_record([thread(7, bare[:2]), thread(8, bare[:1])], record, kept) == [
        thread(7, WAIT[:2]),
        thread(8, WAIT),
    ]


_C = """
typedef struct { int id; const char *name; } item;
static char greeting[] = "hello, world";
__attribute__((noinline)) int leaf(item *one, char (*big)[5000], unsigned char small[4])
{
	double half = 0.5;
	char word[8] = "abc";
	const char *text = one->name;
	*(volatile int *)0 = (int)half + word[0] + text[0];
	return 0;
}
int main(void)
{
	item one = { 7, greeting };
	return leaf(&one, 0, 0);
}
"""


def test_variables_and_what_registers_point_to(tmp_path: Path) -> None:
    # GIVEN a process that died in a function with arguments and local variables
    path = compiled(tmp_path, _C, "-g", "-O0", "-e", "main", "-fno-stack-protector", suffix=".c")
    loaded = Loaded(path, BASE)
    process = Unrun(loaded)
    frame = process.push(0x8000, STACK + 0x8100, loaded.returns("main"))
    process.push(0x8100, 0, 0)
    item = process.push(0x80F0, 7, loaded.at("greeting"))  # `one`, in main
    process.push(0x7F80, 0x1234, item)
    process.thread(
        1, loaded.at("leaf", 20), frame - 0x80, frame, rdi=item, rsi=loaded.at("greeting")
    )
    # WHEN all is asked for
    found = (explain_core(process.core(tmp_path), all_threads=True, full=True).threads or [])[0]
    # THEN the frames have their variables, by their types
    assert [one.frame for one in found.values] == [0, 1]
    leaf = {one.name: (one.type, one.value) for one in found.values[0].variables}
    assert set(leaf) == {"one", "big", "small", "half", "word", "text"}
    assert leaf["one"][0] == "item *"
    assert leaf["half"][0] == "double"
    main = {one.name: (one.type, one.value) for one in found.values[1].variables}
    assert main["one"][0] == "item"
    assert (main["one"][1] or "").startswith("{ .id = (int)7, .name = ")
    # AND registers have what lies there
    pointers = {one.register: one for one in found.registers}
    assert pointers["rsi"].string == '"hello, world"'
    assert pointers["rsi"].symbol == "<greeting+0x0>"
    assert pointers["rsi"].file == str(path)
    assert (pointers["rsi"].after or "").startswith("68 65 6c 6c 6f")
    assert pointers["rdi"].mapping == f"{STACK:#x}-{STACK + 0x10000:#x} rw-"
    assert pointers["r8"].mapping is None
    # AND people see both
    shown = text([found], SEGFAULT)
    assert "        half (double) = " in shown
    assert '"hello, world"' in shown
