"""The service under a real systemd as process 1, on a machine of its own: installed by apt,
upgraded, restarted, hung, booted and purged while processes die. None of them is missing on record.

The tests are one story: each goes on where the one before has ended.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kernels.boot import has_kvm
from tests.package.machine import SHARED, Kind, Machine, machine, missing
from tests.system.victims import PATIENCE, ROOT

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

CONFIG = "/etc/coreward/coreward.yaml"
INSTALL = "apt-get install -y --no-install-recommends"
# paths, but for those that apt and dpkg keep notes at, and the journal
_NOTES = (
    "var/lib/dpkg",
    "var/lib/apt",
    "var/lib/systemd",
    "var/cache",
    "var/log",
    "var/tmp",
    "tmp",
)
FILES = (
    f"find / -xdev \\( {' -o '.join(f'-path /{at}' for at in _NOTES)} \\) -prune -o -print | sort"
)
# scripts: a death, its pid noted before; one each second
DEATH = "echo $$ >/tmp/pid; kill -SEGV $$\n"
DEATHS = "while :; do sh -c 'echo $$ >>/tmp/pids; kill -SEGV $$'; sleep 1; done\n"
# one that dies as soon as services start, and one whose end takes place while the machine goes down
UNIT = """[Unit]
Description={0}
[Service]
Type=oneshot
RemainAfterExit=yes
{1}=-/bin/sh -c 'echo $$$$ >/root/{0}; kill -SEGV $$$$'
[Install]
WantedBy=multi-user.target
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The package, and the same as an earlier version."""
    (new,) = (ROOT / "build" / "deb").glob("coreward_*.deb")
    folder = tmp_path_factory.mktemp("old")
    subprocess.run(["dpkg-deb", "-R", str(new), str(folder / "root")], check=True)
    control = folder / "root" / "DEBIAN" / "control"
    control.write_text(re.sub("(?m)^Version: .*", "Version: 0.0.1", control.read_text()))
    old = folder / "old.deb"
    subprocess.run(["dpkg-deb", "-Zgzip", "-b", str(folder / "root"), str(old)], check=True)
    return old, new


@pytest.fixture(scope="module")
def debian(packages: tuple[Path, Path]) -> Iterator[Machine]:
    """Debian 12, with systemd 252 and Linux 6.1: the hand-off is by pipe."""
    told = ["dpkg-deb", "-f", str(packages[1]), "Depends"]
    depends = subprocess.run(told, check=True, capture_output=True, text=True).stdout.strip()
    with machine(Kind("bookworm", ("linux-image-amd64",), depends)) as one:
        for package, name in zip(packages, ("old.deb", "new.deb"), strict=True):
            shutil.copy(package, one.shared / name)
        if not has_kvm():  # thirty times slower
            one.run(
                "mkdir -p /etc/systemd/system/coreward.service.d; printf"
                " '[Service]\\nTimeoutStartSec=900\\nTimeoutStopSec=900\\n'"
                " >/etc/systemd/system/coreward.service.d/slow.conf; systemctl daemon-reload"
            )
        yield one


@pytest.fixture(scope="module")
def before(debian: Machine) -> tuple[list[str], str]:
    """Files and settings, before anything is installed."""
    return debian.run(FILES).splitlines(), debian.run(SETTINGS)


SETTINGS = "cat /proc/sys/kernel/core_pattern /proc/sys/kernel/core_pipe_limit; ls /sys/fs/bpf"


def deaths(debian: Machine) -> dict[int, dict[str, Any]]:
    """The records, by pid."""
    found = json.loads(debian.run("coreward list --all --json"))
    return {one["pid"]: one for one in found}


def records(debian: Machine, pids: list[int]) -> list[dict[str, Any]]:
    """Of processes that have died, when they are finished."""
    end = time.monotonic() + PATIENCE
    while True:
        found = deaths(debian)
        open_ = [pid for pid in pids if pid not in found or not found[pid]["reason"]]
        if not open_:
            return [found[pid] for pid in pids]
        assert time.monotonic() < end, (open_, found)
        time.sleep(1)


def die(debian: Machine, unit: str) -> int:
    """The pid of a process that has died, the only one of a unit."""
    (debian.shared / "death").write_text(DEATH)
    debian.run(f"systemd-run -q --wait --unit={unit} sh {SHARED}/death", None)
    return int(debian.run("cat /tmp/pid"))


def while_processes_die(debian: Machine, script: str) -> list[int]:
    """Run a script; the pids of those that have died before, meanwhile and afterwards."""
    debian.run("rm -f /tmp/pids")
    (debian.shared / "deaths").write_text(DEATHS)
    debian.run(f"systemd-run -q --unit=deaths sh {SHARED}/deaths")
    debian.run(f"sleep 2; {script}; sleep 2; systemctl stop deaths")
    pids = [int(word) for word in debian.run("cat /tmp/pids").split()]
    assert len(pids) > 2
    return pids


def state(debian: Machine, name: str) -> str:
    return debian.run(f"systemctl show --value -p {name} coreward").strip()


def test_apt_installs_it_and_a_crash_is_on_record(
    debian: Machine, before: tuple[list[str], str]
) -> None:
    # GIVEN a fresh machine WHEN the package is installed THEN the service runs
    assert "Setting up coreward" in debian.run(f"{INSTALL} {SHARED}/old.deb 2>&1")
    assert state(debian, "ActiveState") == "active", debian.run("systemctl status coreward", None)
    assert state(debian, "StatusText").startswith("core BPF, pipe hand-off")
    # AND systemd has nothing to say about its unit
    assert debian.run("systemd-analyze verify --man=no coreward.service 2>&1") == ""
    debian.run("systemd-analyze security --threshold=62 coreward.service")
    # AND a crash is on record, with the unit that it was in
    debian.run(f"echo 'defaults: {{limit: none}}' >{CONFIG}; systemctl reload coreward")
    (record,) = records(debian, [die(debian, "victim")])
    assert (record["outcome"], record["unit"]) == ("complete", "victim.service")


def test_a_reload_that_is_refused_says_so(debian: Machine) -> None:
    # GIVEN a policy that is wrong WHEN it is loaded THEN the state has file, line and key
    debian.run(f"cp {CONFIG} /tmp/good; echo 'defaults: {{capture: all}}' >{CONFIG}")
    debian.run("systemctl reload coreward")
    shown = "systemctl show --value -p StatusText coreward"
    wait = f"until {shown} | grep -q '{{}}'; do sleep 0.2; done; {shown}"
    assert f"{CONFIG}:1" in debian.run(wait.format("old policy stays"))
    # AND WHEN it is right again THEN it is in force
    debian.run(f"cp /tmp/good {CONFIG}; systemctl reload coreward")
    said = debian.run(f"while {shown} | grep -q 'old policy'; do sleep 0.2; done; {shown}")
    assert said.startswith("core BPF, pipe hand-off")


def test_an_upgrade_loses_no_crash_and_no_core(debian: Machine) -> None:
    # GIVEN the files of a new version in the place of those of the agent that runs
    known = set(deaths(debian))
    debian.run(f"dpkg --unpack {SHARED}/new.deb")
    # WHEN processes die THEN it writes and explains their cores, as before
    between = records(debian, [die(debian, f"between{number}") for number in range(3)])
    assert [one["outcome"] for one in between] == ["complete"] * 3, between
    assert all(one["frames"] for one in between), between
    assert deaths(debian)[between[0]["pid"]]["lost"] == {}, between
    # AND WHEN the new one is started while processes die THEN each is on record
    pid = state(debian, "MainPID")
    records(debian, while_processes_die(debian, "dpkg --configure coreward"))
    assert state(debian, "MainPID") != pid
    # AND so are the earlier ones, and nothing is left of the earlier version
    assert known <= set(deaths(debian))
    assert debian.run("ls -d /usr/lib/coreward*") == "/usr/lib/coreward\n"


def test_a_restart_loses_no_crash(debian: Machine) -> None:
    pids = while_processes_die(debian, "systemctl restart coreward")
    assert {one["cause"] for one in records(debian, pids)} == {"signal"}


def test_an_agent_that_hangs_is_started_anew_and_loses_no_crash(debian: Machine) -> None:
    # GIVEN an agent that gets no CPU WHEN systemd has waited for a sign of it long enough
    pid = state(debian, "MainPID")
    hang = f"kill -STOP {pid}; until [ $(systemctl show --value -p MainPID coreward) != {pid} ]"
    until = f"{hang}; do sleep 1; done; until systemctl -q is-active coreward; do sleep 1; done"
    pids = while_processes_die(debian, until)
    # THEN there is another one, and who has died meanwhile is on record
    assert state(debian, "NRestarts") != "0"
    assert {one["cause"] for one in records(debian, pids)} == {"signal"}


def test_crashes_at_shutdown_and_at_boot_are_on_record(debian: Machine) -> None:
    # GIVEN a service that crashes when it is started, and one that does when it is stopped
    for name, when in (("first", "ExecStart"), ("last", "ExecStop")):
        (debian.shared / f"{name}.service").write_text(UNIT.format(name, when))
        debian.run(f"cp {SHARED}/{name}.service /etc/systemd/system; systemctl enable {name}")
    debian.run(
        "sed -i '/ExecStop/iExecStart=/bin/true' /etc/systemd/system/last.service;"
        " systemctl daemon-reload; systemctl start last"
    )
    # WHEN the machine boots again
    took = debian.reboot()
    print(f"booted again in {took:.0f} s")
    # THEN both are on record
    first, last = (int(debian.run(f"cat /root/{name}")) for name in ("first", "last"))
    assert records(debian, [first])[0]["unit"] == "first.service"
    assert records(debian, [last])[0]["unit"] == "last.service"
    debian.run("systemctl disable -q first last; rm /etc/systemd/system/*st.service /root/*st")


def test_what_it_has_changed_is_gone_when_it_is_purged(
    debian: Machine, before: tuple[list[str], str]
) -> None:
    files, settings = before
    # WHEN it is stopped THEN the kernel's settings are as before
    debian.run("systemctl stop coreward")
    assert debian.run(SETTINGS).splitlines()[:2] == settings.splitlines()[:2]
    # AND WHEN it is purged THEN so is all else
    debian.run("systemctl start coreward; rm -rf /etc/systemd/system/coreward.service.d")
    debian.run("apt-get purge -y coreward 2>&1")
    assert debian.run(SETTINGS) == settings
    assert debian.run("ls /run | grep coreward", None) == ""
    after = debian.run(FILES).splitlines()
    assert sorted(set(after) ^ set(files)) == []
