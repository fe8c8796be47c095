"""A guest runs one command on this machine's files, and says how it ended."""

from __future__ import annotations

import io
import os
import select
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.kernels.boot import NO_STATUS, Result, boot
from tests.kernels.images import KERNELS, Image, fetch

LIMIT_S = 300
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def image() -> Image:
    return fetch("6.1")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def _run(image: Image, script: str, out: Path, limit_s: float = LIMIT_S) -> Result:
    return boot(image, ["sh", "-c", script], folder=ROOT, out=out, limit_s=limit_s)


def test_each_kernel_is_the_one_that_its_name_says(out: Path) -> None:
    with ThreadPoolExecutor() as pool:
        images = list(pool.map(fetch, KERNELS))
    for one in images:  # one at a time: an emulated guest that gets no CPU misses its own timers
        release = _run(one, "uname -r", out / one.name)
        assert release.output == f"{one.version}\n", release.problem(LIMIT_S)
        assert release.output.startswith(f"{one.name}.")
        assert release.status == 0


def test_the_guest_is_as_a_host(image: Image, out: Path) -> None:
    """One guest for all, as it takes seconds to boot."""
    script = """
        pwd; ls Makefile; ulimit -c; cat /sys/class/net/lo/flags; hostname; echo "$WORD"
        for at in / /tmp /run /dev/shm /dev/pts /sys/fs/bpf /sys/fs/cgroup /sys/kernel/tracing \
            /mnt/out; do findmnt -no FSTYPE "$at"; done
        touch /tmp/file /changed build/changed && rm /etc/hostname && echo writable
        [ $(ps -o sid= $$) -gt 1 ] && echo session
        bash -c 'cat <(echo descriptors)' >/dev/stdout
        echo kept >"$OUT/file"
        exit 42
    """
    live = io.BytesIO()
    result = boot(
        image,
        ["sh", "-c", script],
        folder=ROOT,
        out=out,
        limit_s=LIMIT_S,
        env={"WORD": "it's $a word"},
        live=live,
    )
    assert result.output.splitlines() == [
        *(str(ROOT), "Makefile", "unlimited", "0x9", "guest", "it's $a word"),
        *("overlay", "tmpfs", "tmpfs", "tmpfs", "devpts", "bpf", "cgroup2", "tracefs", "9p"),
        *("writable", "session", "descriptors"),
    ]
    assert live.getvalue().decode() == result.output
    assert result.status == 42
    assert (out / "file").read_text() == "kept\n"
    assert not Path("/changed").exists()
    assert not (ROOT / "build" / "changed").exists()


def test_a_crash_is_dumped_as_the_guests_core_pattern_says(image: Image, out: Path) -> None:
    """The helper runs in the root of process 1: it finds $OUT there."""
    helper = "printf '#!/bin/sh\\ncat >/mnt/out/core\\n' >/tmp/helper; chmod +x /tmp/helper"
    pattern = "echo '|/tmp/helper' >/proc/sys/kernel/core_pattern"
    result = _run(image, f"{helper}; {pattern}; sh -c 'kill -SEGV $$'", out)
    assert result.status == 128 + signal.SIGSEGV
    assert (out / "core").read_bytes()[:4] == b"\x7fELF"


def test_a_guest_that_exceeds_its_limit_is_killed(image: Image, out: Path) -> None:
    script = "echo started; touch $OUT/started; sleep 1000"
    result = _run(image, script, out, limit_s=30)
    assert (out / "started").exists()
    assert (result.status, result.timed_out, result.output) == (None, True, "started\n")
    problem = result.problem(30)
    assert problem
    assert problem.startswith("the guest took longer than 30 s; the end of its console:\n")


def test_a_kernel_that_panics_is_reported_with_its_console(image: Image, out: Path) -> None:
    result = _run(image, "echo c >/proc/sysrq-trigger; sleep 1000", out)
    assert (result.status, result.timed_out) == (None, False)
    problem = result.problem(LIMIT_S)
    assert problem
    assert problem.startswith(
        "the guest panicked (Kernel panic - not syncing: sysrq triggered crash);"
    )
    assert "RIP: " in problem


def test_the_command_line_gives_the_output_and_the_status(out: Path) -> None:
    command = [sys.executable, "-m", "tests.kernels.boot", "--out", str(out), "6.1", "--"]
    done = subprocess.run(
        [*command, "sh", "-c", "echo output; echo error >&2; exit 7"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, "output\nerror\n", "")
    done = subprocess.run(
        [*command[:3], "--limit", "0.5", *command[3:], "true"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == NO_STATUS
    assert done.stderr.startswith("the guest took longer than 0.5 s")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_qemu_ends_with_its_parent(number: signal.Signals, out: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.kernels.boot", "--out", str(out), "6.1", "--"]
    with subprocess.Popen(
        [*command, "sh", "-c", "echo started; sleep 1000"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},  # a killed one leaves its working folder
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == b"started\n"
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        machines = [os.pidfd_open(int(child)) for child in children]
        assert len(machines) == 1
        parent.send_signal(number)
        parent.wait(30)
    # A pidfd is readable when its process has ended
    assert select.select(machines, [], [], 30)[0] == machines
    os.close(machines[0])
