"""`coreward doctor`: what works on this host, by trying it; and the way back."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from collector.agent.lend import Lender
from collector.cli.choice import DEFAULT_RUN_DIR
from collector.cli.render import clean, print_json, size
from collector.cli.run import DEFAULT_PIN_DIR
from collector.errors import CorewardError, HoldError, ProbeError, TakeoverRefused
from collector.handoff import pin
from collector.handoff.backends import open_backend
from collector.handoff.native import Native
from collector.handoff.settings import SYSCTL, SettingsGuard
from collector.linux import systemd
from collector.model import Backend
from collector.native import library
from collector.policy.types import Takeover
from collector.probe import pins
from collector.store.store import Store

_LIBRARIES = ("drgn", "msgspec", "prometheus-client", "pyyaml", "zstandard")
_NOT_TRIED = "not tried"
# what our two ways of hand-off write into kernel.core_pattern, with their run directory
_OURS = re.compile(r"@@(?P<socket>/.+)/core\.sock|\|/.*/coreward-pipe (?P<pipe>/\S+) .*")


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str
    needed: bool = True  # the agent cannot do its work without it


class DoctorVerb:
    """Say what works on this host, by doing it: the BPF programs are loaded and see a process die,
    the kernel hands a crash over by socket and by pipe (for some milliseconds each, and only where
    no other crash handler is installed), memory is pinned. With --restore or --unpin, take back
    what an agent that was killed has left. With --repair, make the store's index
    anew. Exit status 1 if something is missing that the agent
    needs."""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="the checks as a JSON array")
        parser.add_argument(
            "--restore",
            action="store_true",
            help="put the kernel's settings back (BPF goes on recording for the next start)",
        )
        parser.add_argument(
            "--unless-restarted",
            metavar="UNIT",
            help="with --restore: not while systemd is about to start this unit again",
        )
        parser.add_argument(
            "--unpin", action="store_true", help="detach the BPF programs of an agent that is gone"
        )
        parser.add_argument(
            "--repair",
            action="store_true",
            help="make the store's index anew from its folders, and say what was found",
        )
        parser.add_argument(
            "--before-run",
            type=Path,
            metavar="FILE",
            help="say whether an agent with this configuration could start: no other one is at work"
            " here, and another crash handler matters only where it is not to be replaced",
        )
        parser.add_argument("--run-dir", type=Path, default=DEFAULT_RUN_DIR, metavar="DIR")
        parser.add_argument("--pin-dir", type=Path, default=DEFAULT_PIN_DIR, metavar="DIR")

    def run(self, args: argparse.Namespace) -> int:
        if args.repair:
            from collector.cli.repair import repair  # noqa: PLC0415 - not of the checks

            return repair(args.store, args.run_dir, json=args.json)
        if os.geteuid() != 0:
            raise HoldError("doctor needs root: it loads BPF programs and takes crashes over")
        # as on Ctrl-C: what was changed for a moment is put back
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: sys.exit(1))
        if args.restore and args.unless_restarted and _is_restarted(args.unless_restarted):
            print(clean(f"{args.unless_restarted} starts again: the settings stay as they are"))
            return 0
        if args.restore or args.unpin:
            done = SettingsGuard(args.run_dir).restore() if args.restore else []
            done += Lender(args.run_dir).restore() if args.restore else []
            if args.unpin:
                done += _unpin(args.pin_dir)
            for line in done or [_nothing_put_back(args.run_dir)]:
                print(clean(line))
            return 0
        checks = list(_checks(args))
        if args.json:
            print_json(checks)
        else:
            width = max(len(check.name) for check in checks)
            for check in checks:
                mark = "ok" if check.ok else ("MISSING" if check.needed else "no")
                print(f"{mark:<8}{check.name:<{width}}  {clean(check.detail)}")
        return 0 if all(check.ok or not check.needed for check in checks) else 1


def _is_restarted(unit: str) -> bool:
    """Whether systemd starts it again, so that crashes wait in a socket for the next agent.

    It does unless it is being stopped, for the unit has `Restart=always`. Where systemd does not
    answer, crashes are not to wait for anybody.
    """
    if not systemd.is_init():
        return False
    try:
        return systemd.job_of(unit) != "stop"
    except CorewardError:
        return False


def _nothing_put_back(run_dir: Path) -> str:
    other = _run_dir_of(_core_pattern())
    if other is None or other == run_dir:
        return "nothing to put back"
    return (
        f"nothing to put back in {run_dir}; kernel.core_pattern is that of an agent with another: "
        f"see `coreward doctor --restore --run-dir {other}`"
    )


def _core_pattern() -> str:
    return (SYSCTL / "core_pattern").read_text().rstrip("\n")


def _run_dir_of(pattern: str) -> Path | None:
    """Of the agent that this core_pattern is of, if it is one of ours."""
    found = _OURS.fullmatch(pattern)
    return Path(found["socket"] or found["pipe"]) if found else None


def _unpin(pin_dir: Path) -> list[str]:
    """Those of an agent that is gone, and of doctors that were killed."""
    from collector.probe.features import DOCTORS_PINS  # noqa: PLC0415 - as above

    removed = []
    for left in sorted(pins.BPFFS.glob(f"{DOCTORS_PINS}*")):
        with contextlib.suppress(ProbeError):  # a doctor that is at work
            removed += _unpin_one(left)
    return removed + _unpin_one(pin_dir)


def _unpin_one(pin_dir: Path) -> list[str]:
    if not pin_dir.is_dir():
        return []
    descriptor = pins.lock(pin_dir)  # no agent is at work
    try:
        found = pins.remove_all(pin_dir)
    finally:
        os.close(descriptor)
    return [f"{directory} is removed: its programs are detached" for directory in found]


def _checks(args: argparse.Namespace) -> Iterator[Check]:
    takeover = False
    if args.before_run is not None:
        from collector.policy.load import load  # noqa: PLC0415 - PyYAML

        takeover = load(args.before_run).hold.takeover is not Takeover.NO
        alone = _alone(args.run_dir, args.pin_dir)
        yield alone
        if not alone.ok:
            return  # what is tried would be in its way
    # the compiler's loader, and what only snapshots need: just for this verb
    from collector.probe.features import probe_features  # noqa: PLC0415

    bpf = False
    for feature in probe_features():
        yield Check(name=feature.name, ok=feature.ok, detail=feature.detail, needed=False)
        bpf |= feature.ok and feature.name.startswith("BPF, ")
    ways = (Backend.SOCKET, Backend.PIPE)
    tried = [_handoff(backend, args.run_dir, takeover) for backend in ways]
    yield from tried
    yield _deaths(bpf, tried)
    yield _pin()
    yield _precopy()
    yield _native()
    yield from _settings(args.run_dir, takeover)
    yield _store(args.store)
    for name in _LIBRARIES:
        yield Check(name=name, ok=True, detail=importlib.metadata.version(name))
    gdb = shutil.which("gdb")
    yield Check(
        name="gdb",
        ok=gdb is not None,
        detail=gdb or "`coreward debug` needs it: install the package gdb",
        needed=False,
    )


def _alone(run_dir: Path, pin_dir: Path) -> Check:
    """Whether no other agent is at work on this host, in whatever mount namespace."""
    guard = SettingsGuard(run_dir)
    try:
        if pin_dir.is_dir():
            os.close(pins.lock(pin_dir))
        guard.lock()
        guard.unlock()
    except CorewardError as error:
        return Check(name="other agents", ok=False, detail=str(error))
    return Check(name="other agents", ok=True, detail="none is at work")


def _handoff(backend: Backend, run_dir: Path, takeover: bool) -> Check:
    """Let the kernel hand over a crash of ours, as at the start of an agent."""
    name = f"hand-off by {backend.value}"
    guard = SettingsGuard(run_dir)
    try:
        guard.lock()
        if guard.file.exists():  # and nobody has the lock
            detail = "a killed agent's settings are in force: `coreward doctor --restore` first"
            return Check(name=name, ok=False, detail=detail, needed=False)
        open_backend(backend, run_dir, guard, Native(), takeover=takeover).close()
    except TakeoverRefused as error:
        return Check(name=name, ok=False, detail=f"{_NOT_TRIED}: {error}", needed=False)
    except CorewardError as error:
        return Check(name=name, ok=False, detail=str(error), needed=False)
    finally:
        guard.unlock()
    return Check(name=name, ok=True, detail="the kernel handed over a crash", needed=False)


def _deaths(bpf: bool, tried: list[Check]) -> Check:
    """Whether an agent would see deaths here at all."""
    handed = any(check.ok for check in tried)
    unknown = any(check.detail.startswith(_NOT_TRIED) for check in tried)
    seen = "every death is seen" if bpf else "only what the kernel hands over is seen"
    if handed:
        detail = f"{seen}, and crashes keep their memory"
    elif unknown:
        detail = f"{seen}; whether crashes are handed over was not tried"
    elif bpf:
        detail = f"{seen}; none keeps its memory: nothing is handed over"
    else:
        detail = "an agent would see none: neither BPF nor a hand-off works"
    return Check(name="deaths", ok=bpf or handed or unknown, detail=detail)


def _precopy() -> Check:
    from collector.snapshot import userfault  # noqa: PLC0415 - of snapshots

    try:
        userfault.check_available()
    except CorewardError as error:
        detail = f"{error}; full-stop snapshots fork or copy instead"
        return Check(name="pre-copy", ok=False, detail=detail, needed=False)
    return Check(name="pre-copy", ok=True, detail="snapshots of large processes stop them shortly")


def _pin() -> Check:
    try:
        pin.prepare()
    except CorewardError as error:
        return Check(
            name="pin",
            ok=False,
            detail=f"{error}; release waits for the core instead",
            needed=False,
        )
    return Check(name="pin", ok=True, detail="userfaultfd for kernel faults: instant release works")


def _native() -> Check:
    try:
        detail = str(library.load()._name)
    except CorewardError as error:
        return Check(name="native", ok=False, detail=str(error))
    return Check(name="native", ok=True, detail=f"{detail}: takes crashes without the interpreter")


def _settings(run_dir: Path, takeover: bool) -> Iterator[Check]:
    pattern = _core_pattern()
    other = _run_dir_of(pattern)
    guard = SettingsGuard(run_dir)
    foreign = pattern.startswith(("|", "@")) and not guard.is_ours(pattern)
    ours, at_work = guard.is_ours(pattern), guard.is_locked()
    if ours and at_work:
        detail = f"{pattern!r}: an agent is at work, and crashes are handed to it"
    elif ours:
        detail = (
            f"{pattern!r}: that of an agent that has ended, so crashes leave no core; "
            "`coreward doctor --restore` puts back what was before"
        )
    elif guard.file.exists():
        foreign = at_work
        detail = f"{pattern!r}: someone else has written it over an agent's; " + (
            "that agent is not handed crashes any more: `hold.takeover: keep` has it write its own "
            "again, and so does a restart"
            if at_work
            else "that agent has ended, and it is left alone"
        )
    elif other is not None and other != run_dir:
        detail = f"{pattern!r}: that of an agent with --run-dir {other}, which has the crashes"
    elif foreign and takeover:
        foreign, detail = False, f"{pattern!r}: another crash handler's, which is to be replaced"
    elif foreign:
        detail = f"{pattern!r}: another crash handler's; see hold.takeover"
    else:
        detail = repr(pattern)
    yield Check(name="core_pattern", ok=not foreign, detail=detail)


def _store(path: Path) -> Check:
    if not path.exists():
        return Check(name="store", ok=True, detail=f"{path}: made at the agent's first start")
    try:
        with Store(path, create=False, readonly=True) as store:
            detail = f"{path}: {store.count()} records, {size(store.free_bytes())} free"
    except CorewardError as error:
        return Check(name="store", ok=False, detail=str(error))
    return Check(name="store", ok=True, detail=detail)
