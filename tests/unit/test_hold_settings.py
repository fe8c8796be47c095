"""Taking the kernel's settings over and giving them back, on files in place of sysctls."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path

import pytest

from collector.errors import HoldError, TakeoverRefused
from collector.handoff.settings import SettingsGuard
from collector.linux import initial_mounts

OTHER = "|/usr/lib/systemd/systemd-coredump %P"


class Kernel:
    """A directory that looks like /proc/sys/kernel."""

    def __init__(self, root: Path, pattern: str = "core", limit: str = "0") -> None:
        self.sysctl = root / "kernel"
        self.sysctl.mkdir()
        self.state, self.lock = root / "state", root / "lock"
        self.set(pattern, limit)

    def set(self, pattern: str, limit: str) -> None:
        (self.sysctl / "core_pattern").write_text(f"{pattern}\n")
        (self.sysctl / "core_pipe_limit").write_text(f"{limit}\n")

    def get(self) -> tuple[str, str]:
        names = ("core_pattern", "core_pipe_limit")
        pattern, limit = ((self.sysctl / name).read_text().rstrip("\n") for name in names)
        return pattern, limit

    def guard(self) -> SettingsGuard:
        return SettingsGuard(self.state, self.sysctl, self.lock)

    def crash(self, guard: SettingsGuard) -> None:
        """What is left of a guard when its process is killed: its lock is gone."""
        guard.unlock()


def test_what_was_there_comes_back(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, pattern="core.%p", limit="4")
    with kernel.guard() as guard:
        guard.takeover("|/helper", 512, allow=False)
        assert kernel.get() == ("|/helper", "512")
        guard.takeover("@@/sock", None, allow=False)
        assert kernel.get() == ("@@/sock", "512")
        assert guard.file.stat().st_mode & 0o777 == 0o600
        assert kernel.state.stat().st_mode & 0o777 == 0o700
    assert kernel.get() == ("core.%p", "4")
    assert list(kernel.state.iterdir()) == []
    assert guard.restore() == []


def test_a_larger_pipe_limit_stays(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, limit="1000")
    with kernel.guard() as guard:
        guard.takeover("|/helper", 512, allow=False)
        assert kernel.get() == ("|/helper", "1000")
    assert kernel.get() == ("core", "1000")


@pytest.mark.parametrize("other", [OTHER, "@/run/other.sock", "@@/run/other.sock"])
def test_another_handler_is_refused_unless_allowed(tmp_path: Path, other: str) -> None:
    kernel = Kernel(tmp_path, pattern=other)
    with pytest.raises(TakeoverRefused, match=other.split(maxsplit=1)[0].replace("|", r"\|")):
        kernel.guard().takeover("@@/sock", None, allow=False)
    assert kernel.get() == (other, "0")
    assert not kernel.state.exists()
    with kernel.guard() as guard:
        guard.takeover("@@/sock", None, allow=True)
        assert kernel.get() == ("@@/sock", "0")
    assert kernel.get() == (other, "0")


def test_after_a_crash_the_older_originals_count(tmp_path: Path) -> None:
    """
    GIVEN an agent that replaced another handler and was killed
    WHEN the next agent starts, with another pattern and without leave to replace
    THEN it does not take our own leavings for another handler, and gives back what was first
    """
    kernel = Kernel(tmp_path, pattern=OTHER)
    killed = kernel.guard()
    killed.takeover("@@/old", None, allow=True)
    kernel.crash(killed)
    with kernel.guard() as guard:
        guard.takeover("|/new", 512, allow=False)
        assert kernel.get() == ("|/new", "512")
    assert kernel.get() == (OTHER, "0")


def test_a_crash_at_any_step_can_be_undone(tmp_path: Path) -> None:
    """
    GIVEN an agent that was killed after it saved and before it changed anything,
          on its first or on its second takeover
    WHEN it is restored
    THEN the settings are the first originals
    """
    kernel = Kernel(tmp_path)
    killed = kernel.guard()
    killed.takeover("|/one", 512, allow=False)
    killed.takeover("|/two", 512, allow=False)
    kernel.crash(killed)
    for pattern, limit in (("core", "0"), ("core", "512"), ("|/one", "512")):
        kernel.set(pattern, limit)
        saved = killed.file.read_bytes()
        kernel.guard().restore()
        assert kernel.get() == ("core", "0")
        killed.file.write_bytes(saved)


def test_what_someone_else_set_meanwhile_is_left_alone(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    guard = kernel.guard()
    guard.takeover("|/helper", 512, allow=False)
    kernel.set(OTHER, "512")
    assert guard.restore() == [
        f"kernel.core_pattern is {OTHER!r} by someone else's hand: left alone",
        "kernel.core_pipe_limit is '0' again",
    ]
    assert kernel.get() == (OTHER, "0")


def test_after_a_reboot_the_present_values_are_the_originals(tmp_path: Path) -> None:
    """
    GIVEN a save file of before a reboot
    WHEN an agent starts while an administrator's new pattern is in force
    THEN that pattern comes back, not that of before the reboot
    """
    kernel = Kernel(tmp_path, pattern="core.old")
    killed = kernel.guard()
    killed.takeover("@@/sock", None, allow=False)
    kernel.crash(killed)
    kernel.set("/var/cores/%p", "0")
    with kernel.guard() as guard:
        guard.takeover("@@/sock", None, allow=False)
    assert kernel.get() == ("/var/cores/%p", "0")


def test_a_lost_save_file_does_not_make_our_pattern_the_original(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, pattern="@@/sock")
    with kernel.guard() as guard:
        guard.takeover("@@/sock", None, allow=False)
    assert kernel.get() == ("core", "0")


def test_two_agents_cannot_both_take_over(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    with kernel.guard() as first:
        first.takeover("@@/sock", None, allow=False)
        second = SettingsGuard(tmp_path / "other-state", kernel.sysctl, kernel.lock)
        with pytest.raises(TakeoverRefused, match="another coreward agent"):
            second.takeover("@@/second", None, allow=True)
        with pytest.raises(TakeoverRefused, match="another coreward agent"):
            kernel.guard().restore()
        assert kernel.get() == ("@@/sock", "0")
    second.takeover("@@/second", None, allow=False)
    assert kernel.get() == ("@@/second", "0")
    assert second.restore() == ["kernel.core_pattern is 'core' again"]


def test_a_lock_of_somebody_else_on_the_setting_is_no_hindrance(tmp_path: Path) -> None:
    # GIVEN a lock on the setting itself, which everybody can read
    kernel = Kernel(tmp_path)
    with open(kernel.sysctl / "core_pattern") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        # THEN it can be taken over and given back
        with kernel.guard() as guard:
            guard.takeover("@@/sock", None, allow=False)
            assert kernel.get() == ("@@/sock", "0")
        assert kernel.get() == ("core", "0")
    # AND what we lock ourselves nobody else can open
    assert kernel.lock.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("how", ["open", "link", "folder"])
def test_a_lock_that_others_could_hold_is_refused(tmp_path: Path, how: str) -> None:
    kernel = Kernel(tmp_path)
    if how == "open":
        kernel.lock.touch()
        kernel.lock.chmod(0o644)
    elif how == "link":
        kernel.lock.symlink_to(kernel.sysctl / "core_pattern")
    else:
        kernel.lock.mkdir(mode=0o755)
    with pytest.raises(HoldError, match="cannot be locked"):
        kernel.guard().takeover("@@/sock", None, allow=False)
    assert kernel.get() == ("core", "0")


@pytest.mark.parametrize("damage", [b"", b"{", b'{"settings": {"core_pattern": 1}}'])
def test_a_damaged_save_file_is_said_and_kept(tmp_path: Path, damage: bytes) -> None:
    kernel = Kernel(tmp_path)
    kernel.state.mkdir()
    guard = kernel.guard()
    guard.file.write_bytes(damage)
    for act in (lambda: guard.takeover("@@/sock", None, allow=False), guard.restore):
        with pytest.raises(HoldError, match="is damaged"):
            act()
    assert kernel.get() == ("core", "0")
    assert guard.file.read_bytes() == damage


def test_the_save_file(tmp_path: Path) -> None:
    """What another version of the agent has to understand."""
    kernel = Kernel(tmp_path)
    with kernel.guard() as guard:
        guard.takeover("|/helper", 512, allow=False)
        assert json.loads(guard.file.read_text()) == {
            "settings": {
                "core_pattern": {"original": "core", "ours": ["|/helper"]},
                "core_pipe_limit": {"original": "0", "ours": ["512"]},
            }
        }


def test_whether_a_pattern_is_still_set(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    guard = kernel.guard()
    # GIVEN our pattern THEN it is known to be there
    guard.takeover("@@/run/ours", None, allow=False)
    assert guard.is_set("@@/run/ours")
    # WHEN others write theirs, or nothing can be read THEN it is not
    kernel.set(OTHER, "0")
    assert not guard.is_set("@@/run/ours")
    (kernel.sysctl / "core_pattern").unlink()
    assert not guard.is_set("@@/run/ours")
    guard.unlock()


@pytest.mark.parametrize("ours", [True, False], ids=["initial", "its own"])
def test_a_coredump_socket_is_set_from_the_initial_mount_namespace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours: bool
) -> None:
    # GIVEN a kernel that refuses the socket here: in a mount namespace of our own, or at all
    kernel = Kernel(tmp_path)
    really = Path.write_text

    def refuse(path: Path, text: str) -> int:
        if text.startswith("@"):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return really(path, text)

    monkeypatch.setattr(Path, "write_text", refuse)
    monkeypatch.setattr(initial_mounts, "are_ours", lambda: ours)
    monkeypatch.setattr(initial_mounts, "write", lambda path, line: really(path, f"{line}\n"))
    guard = kernel.guard()
    # WHEN it is set THEN it was written from there, if that can help
    if ours:
        with pytest.raises(HoldError, match="cannot set kernel"):
            guard.takeover("@@/sock", None, allow=False)
    else:
        guard.takeover("@@/sock", None, allow=False)
        assert kernel.get() == ("@@/sock", "0")
    # AND what was there before comes back
    guard.restore()
    assert kernel.get() == ("core", "0")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_line_is_written_from_another_mount_namespace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # which is our own here: a sandbox may hide that of process 1
    monkeypatch.setattr(initial_mounts, "_INITIAL", "/proc/self/ns/mnt")
    initial_mounts.write(tmp_path / "setting", "@@/run/a b/$(c)")
    assert (tmp_path / "setting").read_text() == "@@/run/a b/$(c)\n"
    with pytest.raises(OSError, match=r"nsenter: .*absent"):
        initial_mounts.write(tmp_path / "absent" / "setting", "x")
