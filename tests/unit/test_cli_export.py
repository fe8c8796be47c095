"""A death for others: what is in it, and what never is."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from collector.cli import main
from collector.cli.anonymous import AnonymousReport, Place, anonymous
from collector.model import Frame, KilledBy, Killer, Record, Relative, Signature
from collector.store.store import Store
from tests.unit.store_samples import SEGFAULT

SECRET = "s3cret"

# one that has the secret wherever a record has text of somebody's own
FULL = msgspec.structs.replace(
    SEGFAULT,
    exe=f"/home/{SECRET}/bin/backup",
    comm=SECRET[:15],
    cmdline=["backup", f"--password={SECRET}"],
    cgroup=f"/user.slice/{SECRET}",
    unit=f"{SECRET}.service",
    owner=SECRET,
    thread_name=SECRET,
    reason=f"SIGABRT: {SECRET}",
    abort_message=SECRET,
    rule=SECRET,
    release_reason=SECRET,
    killer=Killer(
        by=KilledBy.PROCESS, comm=SECRET, cmdline=[SECRET], parents=[Relative(pid=1, comm=SECRET)]
    ),
    lost={"core": SECRET},
    signature=Signature(id="0123456789ab", text=f"SIGSEGV | {SECRET}", note=SECRET),
    frames=[
        Frame(
            pc=0x55D0C0DE1234,
            function="inner",
            offset=0x12,
            file=f"/home/{SECRET}/src/victim.c",
            line=10,
            module=f"/home/{SECRET}/bin/victim",
            build_id="ab" * 20,
            module_offset=0x1234,
        ),
        Frame(pc=1, file=f"{SECRET} 1.c", module=f"/opt/x/{SECRET} lib.so", inline=True),
        Frame(pc=2, module="/usr/lib/x86_64-linux-gnu/libc.so.6", scanned=True),
        Frame(pc=3, module=f"/usr/lib/../../home/{SECRET}/a.so"),
    ],
)


def test_the_whole_report() -> None:
    report = anonymous(FULL)
    assert report.frames == [
        Place(
            function="inner",
            offset=0x12,
            line="victim.c:10",
            module="victim",
            build_id="ab" * 20,
            module_offset=0x1234,
        ),
        Place(module="?", inline=True),
        Place(module="/usr/lib/x86_64-linux-gnu/libc.so.6", scanned=True),
        Place(module="a.so"),
    ]
    assert (report.program, report.signal, report.null) == ("backup", "SIGSEGV", True)
    assert (report.signature, report.day.isoformat()) == ("0123456789ab", "2026-11-21")


def test_no_text_of_somebodys_own_is_in_it() -> None:
    # GIVEN a record that is full of a secret
    assert msgspec.json.encode(FULL).count(SECRET.encode()) > 20
    # THEN its report has it nowhere, nor an address, nor the time of the day
    data = msgspec.json.encode(anonymous(FULL))
    for hidden in (SECRET, str(0x55D0C0DE1234), "03:00", "home"):
        assert hidden.encode() not in data


def test_each_field_of_a_record_was_thought_about() -> None:
    """A new field is not in the report; this list says which ones are."""
    taken = {
        *("time", "exe", "cause", "signal_name", "si_code", "si_addr", "fault_access"),
        *("exit_code", "threads", "signature", "frames"),
    }
    everything = msgspec.structs.asdict(FULL)
    bare = Record(
        **{  # what a record must have, and what the report takes
            name: everything[name] for name in (*taken, "id", "pid", "tid", "comm", "start_ns")
        }
    )
    assert anonymous(bare) == anonymous(FULL)


def test_the_verb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COREWARD_STORE", str(tmp_path / "store"))
    with Store(tmp_path / "store", create=True) as store:
        store.put(FULL)
    file = tmp_path / "report.json"
    assert main(["export", "latest", "--anonymous", "-o", str(file)]) == 0
    assert msgspec.json.decode(file.read_bytes(), type=AnonymousReport) == anonymous(FULL)
    assert main(["export", "--anonymous"]) == 0
    assert capsys.readouterr().out == file.read_text()
    # AND what is there is not overwritten, and a form has to be named
    assert main(["export", "--anonymous", "-o", str(file)]) == 1
    assert "cannot be written: File exists" in capsys.readouterr().err
    assert main(["export"]) == 2
