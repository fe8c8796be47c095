"""The Debian package in a fresh Debian: apt installs it, a crash is on record, and what it has
changed is gone when it is purged.

There is no systemd in it, so the test is the service manager, and starts what the unit says.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.package.debian import ENVIRONMENT, PINS, RUN_DIR, Debian, fresh, missing
from tests.service_manager import ServiceManager
from tests.system.settings import KernelSettings, kernel_settings
from tests.system.victims import PATIENCE, ROOT

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

CONFIG = "/etc/coreward/coreward.yaml"


@pytest.fixture(scope="module")
def settings() -> Iterator[KernelSettings]:
    with kernel_settings(core_pattern="core", core_pipe_limit="0") as kernel:
        yield kernel


@pytest.fixture(scope="module")
def debian(settings: KernelSettings) -> Iterator[Debian]:
    with fresh() as one:
        (package,) = (ROOT / "build" / "deb").glob("coreward_*.deb")
        shutil.copy(package, one.root / "root")
        yield one


@pytest.fixture(scope="module")
def before(debian: Debian) -> set[str]:
    """Files, before anything is installed."""
    debian.run("apt-get", "-qq", "update")
    return debian.files()


@pytest.fixture(scope="module")
def installed(debian: Debian, before: set[str]) -> Debian:
    """As the README says it."""
    package = next((debian.root / "root").glob("*.deb")).name
    begun = time.monotonic()
    apt = ("apt-get", "install", "-y", "--no-install-recommends")
    said = debian.run(*apt, f"/root/{package}")
    print(f"installed in {time.monotonic() - begun:.1f} s")
    assert "Setting up coreward" in said
    return debian


class Service:
    """The agent, as the installed unit starts it."""

    def __init__(self, debian: Debian, manager: ServiceManager) -> None:
        self.debian, self.manager = debian, manager
        unit = (debian.root / "lib/systemd/system/coreward.service").read_text()
        (command,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
        self._command = shlex.split(command)

    def start(self) -> None:
        environment = dict(ENVIRONMENT)
        self.process = self.manager.launch(self.debian.inside(*self._command), env=environment)
        ready = self.manager.wait_for("READY", "1")
        assert "core BPF" in ready["STATUS"], ready

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE) == 0

    def deaths(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.debian.run("coreward", "list", "--json"))
        return found

    def record(self, pid: int) -> dict[str, Any]:
        """Of a process that has died, when it is finished."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            for death in self.deaths():
                if death["pid"] == pid and death["reason"]:
                    return death
            time.sleep(0.2)
        raise AssertionError(f"no record of {pid} among {self.deaths()}")


def crash(debian: Debian) -> subprocess.Popen[bytes]:
    """A process inside that dies of a signal that dumps core."""
    return subprocess.Popen(
        debian.inside("sh", "-c", "ulimit -c unlimited; kill -SEGV $$"), env=ENVIRONMENT
    )


@pytest.fixture
def service(installed: Debian) -> Iterator[Service]:
    # below the root of the installed system, so that both find it
    with ServiceManager(installed.root, watchdog_s=60.0) as manager:
        manager.inside = "/notify.sock"
        one = Service(installed, manager)
        one.start()
        yield one
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()
    (installed.root / "notify.sock").unlink()


def test_its_verbs_run_without_a_compiler(installed: Debian) -> None:
    assert installed.run("coreward", "policy", "check", CONFIG)
    assert installed.run("sh", "-c", "command -v gcc clang || echo none") == "none\n"
    # bcc is only recommended, and a fresh system has no debugger
    said = subprocess.run(
        installed.inside("coreward", "doctor", "--json"),
        capture_output=True,
        check=False,
        env=ENVIRONMENT,
        text=True,
    )
    checks = {check["name"]: check for check in json.loads(said.stdout)}
    for name in ("BPF, loader core", "pin", "native", "deaths", "store"):
        assert checks[name]["ok"], checks[name]
    wants = installed.root / "etc/systemd/system/basic.target.wants/coreward.service"
    assert os.readlink(wants) == "/lib/systemd/system/coreward.service"
    for page in ("man/man1/coreward.1.gz", "man/man5/coreward.yaml.5.gz"):
        assert (installed.root / "usr/share" / page).exists()


def test_a_crash_is_on_record_also_while_it_is_upgraded(
    installed: Debian, service: Service
) -> None:
    # GIVEN the service, and a process that has died
    with crash(installed) as victim:
        pass
    record = service.record(victim.pid)
    assert record["outcome"] == "complete", record
    # WHEN the package is installed over it, and the service is started anew
    package = next((installed.root / "root").glob("*.deb")).name
    installed.run("dpkg", "-i", f"/root/{package}")
    service.stop()
    with crash(installed) as late:
        time.sleep(0.3)
        waits = late.poll() is None
        service.start()
    # THEN who has died between is on record, too
    assert waits
    assert service.record(late.pid)["outcome"] == "complete"
    shown = installed.run("coreward", "bt", "latest")
    assert "SIGSEGV" in shown
    service.stop()


def test_purge_leaves_the_machine_as_it_was(
    installed: Debian, before: set[str], settings: KernelSettings
) -> None:
    # GIVEN an agent that was killed, so that its settings are in force, its BPF programs attached
    with ServiceManager(installed.root, keeps=0) as manager:
        manager.inside = "/notify.sock"
        service = Service(installed, manager)
        service.start()
        service.process.kill()
        service.process.wait()
    (installed.root / "notify.sock").unlink()
    assert settings.read("core_pattern") != "core"
    assert PINS.exists()
    # WHEN the package is removed
    installed.run("apt-get", "remove", "-y", "coreward")
    # THEN settings and programs are gone, and what it has collected is there
    assert settings.read("core_pattern") == "core"
    assert settings.read("core_pipe_limit") == "0"
    assert not PINS.exists()
    assert (installed.root / "var/lib/coreward/index.db").exists()
    assert (installed.root / CONFIG[1:]).exists()
    # AND WHEN it is purged THEN no file of it is left
    assert not list(RUN_DIR.glob("*.json"))
    installed.part_run_dir()
    installed.run("apt-get", "purge", "-y", "--autoremove", "coreward")
    assert not list((installed.root / "run").glob("coreward*"))
    assert sorted(installed.files() - before) == []
    assert sorted(before - installed.files()) == []
