"""Boot another kernel on this machine's own files and run one command in it.

    python -m tests.kernels.boot 6.1 -- COMMAND...

The guest's root is this machine's / below an overlay in the guest's memory: whatever the command
changes is gone with the guest. Only $OUT is a folder of this machine that it can write to. It has
its own /tmp, /run and /dev/shm, and no network but `lo`. Needs root, as the guest's root reads
files with the rights of whoever starts it. Emulates the processor where KVM cannot run a guest.
"""

from __future__ import annotations

import argparse
import os
import re
import select
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

from tests.kernels.images import CACHE, KERNELS, Image, fetch, tool
from tests.kernels.unpack import KernelError

NO_STATUS = 125  # exit status of the command line if the guest ended without one
OUT = "/mnt/out"  # where `out` is in the guest
TAIL = 20  # lines of the console that a report shows
_ENVIRONMENT = {"HOME": "/root", "OUT": OUT, "TERM": "dumb", "LANG": "C.UTF-8"}
_KERNEL_LINE = (
    "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off nowatchdog nokaslr tsc=reliable"
    " no_timer_check"
)


@dataclass(frozen=True)
class Result:
    """How a guest ended."""

    status: int | None  # of the command, as a shell gives it; None: the guest ended before it did
    output: str  # what the command wrote to stdout and stderr
    console: str  # what the kernel, process 1 and qemu wrote
    timed_out: bool  # the guest was killed at its limit

    def problem(self, limit_s: float) -> str | None:
        """Why there is no status, with the end of the console; None if there is one."""
        if self.status is not None:
            return None
        if self.timed_out:
            why = f"took longer than {limit_s:g} s"
        elif panic := re.search(r"Kernel panic - .*", self.console):
            why = f"panicked ({panic[0]})"
        else:
            why = "died"
        end = self.console.splitlines()[-TAIL:] or ["(empty)"]
        return "\n  ".join([f"the guest {why}; the end of its console:", *end])


def boot(
    image: Image,
    command: Sequence[str],
    *,
    folder: Path,
    out: Path,
    limit_s: float = 600,
    memory: str = "4G",
    cpus: int = 2,
    env: Mapping[str, str] | None = None,
    live: BinaryIO | None = None,
) -> Result:
    """Run `command` in a guest, with `folder` of this machine as its working directory.

    `limit_s` is for all of it, from the start of qemu, and the guest is killed then. `memory` is
    in qemu's units; files that the command writes are in it too. `env` is added to the guest's
    own environment. `live` gets the command's output as it comes. Any number may run at once.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="guest-") as work:
        shared, console, errors = (Path(work, name) for name in ("boot", "console", "qemu"))
        shared.mkdir()
        (shared / "folder").write_text(f"{folder.resolve()}\n")
        (shared / "command").write_text(_script(command, folder, {**_ENVIRONMENT, **(env or {})}))
        machine = _machine(image, memory, cpus, console, {"boot": shared, "out": out})
        with errors.open("wb") as stderr:
            output, in_time = _follow(machine, stderr, limit_s, live)
        status = _status(shared / "status")
        said = [path.read_text(errors="replace") for path in (console, errors) if path.exists()]
        return Result(
            status,
            output.decode(errors="replace"),
            "".join(said).replace("\r\n", "\n"),
            timed_out=status is None and not in_time,
        )


def _script(command: Sequence[str], folder: Path, env: Mapping[str, str]) -> str:
    exports = [f"export {name}={shlex.quote(value)}\n" for name, value in env.items()]
    return f"{''.join(exports)}cd {shlex.quote(str(folder.resolve()))} && {shlex.join(command)}\n"


def _status(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (FileNotFoundError, ValueError):  # ValueError: it died while it wrote
        return None


@cache
def has_kvm() -> bool:
    """Whether KVM runs guests here: the processor's own virtualisation is there, and usable.

    A /dev/kvm without it belongs to a hypervisor that runs only kernels made for it.
    """
    flags = Path("/proc/cpuinfo").read_text().split()
    return ("vmx" in flags or "svm" in flags) and os.access("/dev/kvm", os.R_OK | os.W_OK)


def _machine(
    image: Image, memory: str, cpus: int, console: Path, folders: Mapping[str, Path]
) -> list[str]:
    """The command that starts qemu; it is killed if its parent ends."""
    shares = ["local,path=/,mount_tag=base,security_model=none,readonly=on,multidevs=remap"]
    for tag, path in folders.items():
        shares.append(f"local,path={_quote(path)},mount_tag={tag},security_model=none")
    return [
        *(tool("setpriv"), "--pdeathsig", "KILL", tool("qemu-system-x86_64")),
        *("-M", "q35", "-cpu", "max", "-smp", str(cpus), "-m", memory),
        *("-accel", "kvm" if has_kvm() else "tcg,thread=multi"),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-chardev", f"file,id=console,path={_quote(console)}", "-serial", "chardev:console"),
        *("-chardev", "stdio,id=output,signal=off", "-serial", "chardev:output"),
        *("-device", "virtio-rng-pci"),
        *("-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", _KERNEL_LINE),
        *(word for share in shares for word in ("-virtfs", share)),
    ]


def _quote(path: Path) -> str:
    """A path within an option of qemu."""
    return str(path.resolve()).replace(",", ",,")


def _follow(
    machine: list[str], stderr: BinaryIO, limit_s: float, live: BinaryIO | None
) -> tuple[bytes, bool]:
    """Run qemu; returns its output, and whether it ended by itself within the limit."""
    got = bytearray()
    deadline = time.monotonic() + limit_s
    with subprocess.Popen(
        machine, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr
    ) as qemu:
        assert qemu.stdout
        try:
            while (left := deadline - time.monotonic()) > 0:
                if not select.select([qemu.stdout], [], [], left)[0]:
                    break
                piece = os.read(qemu.stdout.fileno(), 1 << 16)
                if not piece:
                    return bytes(got), True
                got += piece
                if live:
                    live.write(piece)
                    live.flush()
            return bytes(got), False
        finally:
            qemu.kill()


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.kernels.boot", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("kernel", choices=KERNELS)
    parser.add_argument("command", nargs="+", metavar="COMMAND")
    parser.add_argument("--out", type=Path, default=CACHE / "out", help="the folder that is $OUT")
    parser.add_argument("--limit", type=float, default=600, metavar="SECONDS")
    parser.add_argument("--memory", default="4G", help="of the guest (4G)")
    parser.add_argument("--cpus", type=int, default=2, help="of the guest (2)")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    return parser.parse_args(words)


def main(words: Sequence[str]) -> int:
    args = _arguments(words)
    try:
        result = boot(
            fetch(args.kernel),
            args.command,
            folder=Path.cwd(),
            out=args.out,
            limit_s=args.limit,
            memory=args.memory,
            cpus=args.cpus,
            env=dict(word.partition("=")[::2] for word in args.env),
            live=sys.stdout.buffer,
        )
    except KernelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if problem := result.problem(args.limit):
        print(problem, file=sys.stderr)
    return NO_STATUS if result.status is None else result.status


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
