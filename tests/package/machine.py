"""A virtual machine of its own: a fresh Debian on a disk, its own kernel, systemd as process 1.

    with machine(BOOKWORM) as debian:
        debian.run(f"apt-get install -y {SHARED}/coreward_0.1.0_amd64.deb")
        debian.reboot()

A disk is made once, by debootstrap(8), and used again and again: what a machine changes on it goes
to a file of qemu's that is gone with the machine, but not when it boots again. A machine has no
network but `lo`: all that a package depends on is on the disk. `shared` is a folder that both sides
see. A service inside, `commands`, reads numbers of scripts in it from the second serial line, and
answers with the number when the script has ended.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests.kernels.boot import has_kvm
from tests.kernels.images import tool
from tests.package.debian import CACHE, ENVIRONMENT, MIRROR

SHARED = "/mnt/shared"  # where the folder is inside
LIMIT_S = 900.0  # for a command, or a boot
_SIZE = "4G"  # of a disk: a sparse file
_SYSTEM = "ca-certificates,dbus,init-system-helpers,systemd-sysv,udev"
_TAIL = 30  # lines of the console that a failure shows

_COMMANDS = f"""#!/bin/sh
mkdir -p {SHARED}
mountpoint -q {SHARED} || mount -t 9p -o trans=virtio,version=9p2000.L,cache=none shared {SHARED}
exec </dev/ttyS1 >/dev/ttyS1
stty raw -echo
echo up
while read -r number; do
    sh {SHARED}/$number.sh >{SHARED}/$number.out 2>&1 </dev/null
    echo $? >{SHARED}/$number.status
    echo "$number"
done
"""
_SERVICE = """[Unit]
Description=Commands of the tests
After=multi-user.target
[Service]
ExecStart=/usr/local/sbin/commands
KillMode=process
[Install]
WantedBy=default.target
"""


@dataclass(frozen=True)
class Kind:
    """What a machine is made of."""

    suite: str  # of Debian
    kernel: tuple[str, ...]  # what apt-get is to install for it
    depends: str  # what else is installed, as the field of control (deb-control(5)) says it
    sources: tuple[str, ...] = ()  # further lines of sources.list(5)


class Machine:
    """One that runs. `shared` is the folder that is SHARED inside."""

    def __init__(self, qemu: subprocess.Popen[bytes], shared: Path, console: Path) -> None:
        assert qemu.stdin
        assert qemu.stdout
        self.shared, self._console, self._qemu = shared, console, qemu
        self._to: IO[bytes] = qemu.stdin
        self._from: IO[bytes] = qemu.stdout
        self._said = b""
        self._number = 0
        self._up()

    def run(self, script: str, status: int | None = 0) -> str:
        """What a shell script says inside, which must end with this status; None: with any."""
        number = self._begin(script)
        self._wait_for(number)
        said = (self.shared / f"{number}.out").read_text(errors="replace")
        ended = int((self.shared / f"{number}.status").read_text())
        assert status in (None, ended), f"{script}\nended with {ended}: {said}"
        return said

    def reboot(self) -> float:
        """As its administrator does it; in how many seconds it was up again."""
        begun = time.monotonic()
        self._begin("systemctl --no-block reboot")
        self._wait_for("up")
        self._up_after()
        return time.monotonic() - begun

    def _up(self) -> None:
        self._wait_for("up")
        self._up_after()

    def _up_after(self) -> None:
        self.run("systemctl is-system-running --wait || systemctl --failed --no-legend", None)

    def _begin(self, script: str) -> str:
        self._number += 1
        (self.shared / f"{self._number}.sh").write_text(script + "\n")
        self._to.write(f"{self._number}\n".encode())
        self._to.flush()
        return str(self._number)

    def _wait_for(self, word: str) -> None:
        """A line that is this word; others are passed over."""
        end = time.monotonic() + LIMIT_S
        while True:
            line, newline, rest = self._said.partition(b"\n")
            if newline:
                self._said = rest
                if line.strip(b"\r\0").decode(errors="replace") == word:
                    return
                continue
            left = end - time.monotonic()
            ready = left > 0 and select.select([self._from], [], [], left)[0]
            piece = os.read(self._from.fileno(), 1 << 16) if ready else b""
            if not piece:
                raise AssertionError(f"no {word!r} from the machine; its console:\n{self.console}")
            self._said += piece

    @property
    def console(self) -> str:
        """The end of what qemu, kernel and systemd have said there."""
        said = [path for path in (self._console, self._console.with_name("qemu")) if path.exists()]
        lines = [line for path in said for line in path.read_text(errors="replace").splitlines()]
        return "\n".join(lines[-_TAIL:])


def missing() -> str | None:
    """Why there can be no machine here."""
    if not has_kvm() and not os.environ.get("COREWARD_TEST_EMULATED"):
        return "no KVM; with COREWARD_TEST_EMULATED=1 it is emulated, and takes an hour"
    for program in ("debootstrap", "qemu-system-x86_64", "mkfs.ext4"):
        if shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin") is None:
            return f"no {program}"
    return None


@contextlib.contextmanager
def machine(kind: Kind, memory: str = "2G", cpus: int = 2) -> Iterator[Machine]:
    """Booted, and up."""
    disk = _disk(kind)
    with tempfile.TemporaryDirectory(prefix="machine-") as folder:
        shared, console = Path(folder, "shared"), Path(folder, "console")
        shared.mkdir()
        line = "root=/dev/vda rw console=ttyS0 panic=0 systemd.log_target=console"
        command = [
            *(tool("setpriv"), "--pdeathsig", "KILL", tool("qemu-system-x86_64")),
            *("-M", "q35", "-cpu", "max", "-smp", str(cpus), "-m", memory),
            *("-accel", "kvm" if has_kvm() else "tcg,thread=multi"),
            *("-nodefaults", "-no-user-config", "-display", "none"),
            *("-chardev", f"file,id=console,path={console}", "-serial", "chardev:console"),
            *("-chardev", "stdio,id=commands,signal=off", "-serial", "chardev:commands"),
            *("-device", "virtio-rng-pci"),
            *("-drive", f"file={disk},format=raw,if=virtio,snapshot=on,cache=unsafe"),
            *("-virtfs", f"local,path={shared},mount_tag=shared,security_model=none"),
            *("-kernel", f"{disk.with_suffix('.vmlinuz')}"),
            *("-initrd", f"{disk.with_suffix('.initrd')}", "-append", line),
        ]
        with (
            (shared.parent / "qemu").open("wb") as errors,
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
            ) as qemu,
        ):
            try:
                yield Machine(qemu, shared, console)
            finally:
                qemu.kill()


def _disk(kind: Kind) -> Path:
    """Its root file system; kernel and initial RAM disk lie beside it."""
    disk = CACHE / f"{kind.suite}.ext4"
    if disk.exists():
        return disk
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        root = Path(folder, "root")
        _run("debootstrap", "--variant=minbase", f"--include={_SYSTEM}", kind.suite, root, MIRROR)
        _fill(root, kind)
        for name in ("vmlinuz", "initrd"):
            (newest,) = (root / "boot").glob(f"{name}*")
            shutil.copy(newest, disk.with_suffix(f".{name}"))
        partial = disk.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        _run("mkfs.ext4", "-q", "-d", root, partial, _SIZE)
        partial.rename(disk)
    return disk


def _fill(root: Path, kind: Kind) -> None:
    """A kernel, the service `commands`, and what the package depends on."""
    sources = root / "etc/apt/sources.list"
    sources.write_text(sources.read_text() + "".join(f"{line}\n" for line in kind.sources))
    policy = root / "usr/sbin/policy-rc.d"  # nothing is started while it is made
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    (root / "etc/fstab").touch()
    _apt(root, "update")
    _apt(root, "install", "-y", "--no-install-recommends", "initramfs-tools", "zstd", *kind.kernel)
    _apt(root, "satisfy", "-y", "--no-install-recommends", kind.depends)
    _apt(root, "clean")
    policy.unlink()
    program = root / "usr/local/sbin/commands"
    program.write_text(_COMMANDS)
    program.chmod(0o755)
    (root / "etc/systemd/system/commands.service").write_text(_SERVICE)
    _inside(root, "systemctl", "enable", "commands.service")


def _apt(root: Path, *words: str) -> None:
    _inside(root, "apt-get", "-q", *words)


def _inside(root: Path, *command: str) -> None:
    """Below `root`, with processes and mounts of its own."""
    own = ("unshare", "--mount", "--pid", "--fork", f"--mount-proc={root}/proc")
    _run(*own, "chroot", root, *command)


def _run(*command: str | Path) -> None:
    done = subprocess.run(
        [str(word) for word in command],
        check=False,
        capture_output=True,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}\n{done.stderr[-2000:]}"
