"""Fuzzing of what the native part parses, by libFuzzer (Debian's clang and libclang-rt-14-dev).

Each target is a file of this folder that is linked with the whole library, under the sanitizers of
addresses and undefined behaviour. Seeds are made here, from what this machine's /proc says.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from collector.native.build import LIBRARY_SOURCES

ROOT = Path(__file__).resolve().parents[2]
_FLAGS = ("-g", "-O1", "-D_GNU_SOURCE", "-pthread", "-Wall", "-Wextra", "-Werror")
_SANITIZERS = "-fsanitize=fuzzer,address,undefined"
_STRICT = "-fno-sanitize-recover=undefined"
_COUNTED = ("-fsanitize=fuzzer", "-fprofile-instr-generate", "-fcoverage-mapping")
_BASE = 0x10000000  # of robust.c
_COUNT, _KIND, _CODE = 4, 7, 0  # in a region of `llvm-cov export`
_MAX_LENGTH = 8192  # bytes of an input


def _robust(*entries: int, offset: int = -32, pending: int = 0) -> bytes:
    """A process with one thread, whose robust list has its entries at these offsets."""
    tid_word, head = _BASE + 64, _BASE + 80
    places = [_BASE + entry for entry in entries]
    memory = bytearray(0x1000)
    struct.pack_into("<QQ", memory, 0, tid_word, head)
    struct.pack_into("<I", memory, 64, 4711)
    struct.pack_into("<QqQ", memory, 80, (places or [head])[0], offset, pending)
    for place, following in zip(places, [*places, head][1:], strict=True):
        struct.pack_into("<Q", memory, place - _BASE, following)
    return bytes(memory)


def _proc(name: str) -> bytes:
    return Path(f"/proc/self/{name}").read_bytes()


TARGETS: dict[str, Callable[[], list[bytes]]] = {
    "line": lambda: [
        b"812 815 11 1000 1001 1 1700000000 3\n",
        b"812 815 6 0 0 2 1700000000 -\n",
        b"99999999999999999999 1 2 3 4 5 6 7\n",
    ],
    "stat": lambda: [_proc("stat"), b"1 (a) b) (c) S " + b"1 " * 60, b"1 (x) S" + b" -1" * 60],
    "status": lambda: [
        _proc("status"),
        b"Name:\tx\nTgid:\t1\nThreads:\t1\nRssAnon:\t 12 kB\nRssShmem:\t 0 kB\nVmSwap:\t 4 kB\n",
    ],
    "cgroup": lambda: [
        _proc("cgroup"),
        b"0::/\n",
        b"5:memory:/\n0::/init.scope\n",
        b"4:cpu,memory:/a/../b\n",
    ],
    "robust": lambda: [
        _robust(),
        _robust(256),
        _robust(256, 512, 1024),
        _robust(256, 256),
        _robust(4088, pending=_BASE + 513),
        _robust(256, offset=1 << 62),
    ],
}


@dataclasses.dataclass(frozen=True)
class Found:
    """What a run has found."""

    ok: bool
    runs: int
    output: str

    @property
    def summary(self) -> str:
        return f"{'ok' if self.ok else 'FAILED'}, {self.runs} inputs"


class Reached(NamedTuple):
    """What of the native part the inputs of a target come to."""

    functions: int  # that they enter
    regions: int  # of code in these
    entered: int  # of those regions

    @property
    def summary(self) -> str:
        share = 100 * self.entered // max(self.regions, 1)
        return f"{share} % of the code in the {self.functions} functions that they enter"


def is_available() -> bool:
    """Whether clang and its fuzzer's runtime are installed."""
    if shutil.which("clang") is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "empty.c"
        source.write_text(
            "int LLVMFuzzerTestOneInput(const unsigned char *d, unsigned long n)"
            "{ (void)d, (void)n; return 0; }\n"
        )
        command = ["clang", _SANITIZERS, str(source), "-o", f"{folder}/empty"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def build(target: str, folder: Path, flags: Sequence[str] = (_SANITIZERS, _STRICT)) -> Path:
    """Build one target; returns the program."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / target
    includes = [f"-I{LIBRARY_SOURCES[0].parent}", f"-I{ROOT / 'bpf'}"]
    sources = [str(ROOT / "tests" / "fuzz" / f"{target}.c"), *map(str, LIBRARY_SOURCES)]
    command = ["clang", *_FLAGS, *flags, *includes]
    subprocess.run([*command, *sources, "-o", str(program)], check=True)
    return program


def fuzz(program: Path, target: str, folder: Path, seconds: int) -> Found:
    """Run a target for so long. What it finds stays in `folder`, and so does its corpus."""
    corpus = folder / f"{target}.corpus"
    corpus.mkdir(exist_ok=True)
    for number, seed in enumerate(TARGETS[target]()):
        (corpus / f"seed-{number}").write_bytes(seed)
    limits = [f"-max_total_time={seconds}", f"-max_len={_MAX_LENGTH}", "-timeout=20"]
    done = subprocess.run(
        [str(program), *limits, "-print_final_stats=1", f"-artifact_prefix={folder}/", str(corpus)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    output = done.stdout.decode(errors="replace")
    runs = re.search(r"stat::number_of_executed_units: (\d+)", output)
    return Found(done.returncode == 0, int(runs[1]) if runs else 0, output[-8000:])


def coverage(target: str, folder: Path) -> Reached:
    """What the corpus of a target that was fuzzed reaches. Needs Debian's llvm."""
    program = build(target, folder / "counted", _COUNTED)
    raw, merged = program.with_suffix(".profraw"), program.with_suffix(".profdata")
    subprocess.run(
        [str(program), "-runs=0", str(folder / f"{target}.corpus")],
        env={"LLVM_PROFILE_FILE": str(raw)},
        stderr=subprocess.DEVNULL,
        check=True,
    )
    subprocess.run(["llvm-profdata", "merge", str(raw), "-o", str(merged)], check=True)
    said = subprocess.check_output(["llvm-cov", "export", str(program), f"-instr-profile={merged}"])
    library = {str(source) for source in LIBRARY_SOURCES}
    found = [
        [region[_COUNT] for region in function["regions"] if region[_KIND] == _CODE]
        for function in json.loads(said)["data"][0]["functions"]
        if function["count"] and function["filenames"][0] in library
    ]
    counts = [count for counts in found for count in counts]
    return Reached(len(found), len(counts), sum(count > 0 for count in counts))
