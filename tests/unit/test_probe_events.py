"""Ring records become events; records that are not of this build are refused."""

from __future__ import annotations

import struct

import pytest

from collector.errors import ProbeError
from collector.model import (
    Access,
    CrashSite,
    Exit,
    FatalSignal,
    Fault,
    Identity,
    MappedObject,
    OomLevel,
    OomVictim,
    ProcessKey,
    Sender,
    Sending,
    SentFlag,
    StackPage,
)
from collector.probe import events

SEGV_MAPERR = 1
BUILD_ID = bytes(range(1, 21))
REGS = tuple(range(100, 127))
WHO = Identity(
    key=ProcessKey(1234, 5_000),
    tid=1235,
    ns_pid=7,
    ns_tid=8,
    ppid=1,
    comm="victim",
    uid=1000,
    gid=100,
    cgroup_id=99,
    exe="/usr/bin/victim",
)
NO_SENDER = bytes(events.SENDER.size)
NO_FAULT = bytes(events.FAULT.size)


def common(kind: int, size: int, **changes: bytes | int) -> bytes:
    """The head of a record; `changes` replace parts of it."""
    exe = changes.get("exe", b"victim\0bin\0usr\0")
    assert isinstance(exe, bytes)
    who = events.WHO.pack(
        5_000, 99, 1234, 1235, 7, 8, 1, 1000, 100,
        changes.get("exe_len", len(exe)), changes.get("comm", b"victim"), exe,
    )  # fmt: skip
    head = events.HEAD.pack(kind, size, 42)
    return head + who + changes.get("sender", NO_SENDER) + changes.get("fault", NO_FAULT)  # type: ignore[operator]


def fatal(**changes: bytes | int) -> bytes:
    """A record of a SIGSEGV with the first and the third page of its stack."""
    address = changes.get("address", 0x10)
    info = struct.pack("<iiiiQ", 11, 0, changes.get("code", SEGV_MAPERR), 0, address)
    part = events.SIGNAL.pack(
        11, changes.get("told", 1), b"worker", info.ljust(48, b"\0"), *REGS,
        changes.get("trap", 14), changes.get("error", 0b110),
        changes.get("status", 1), changes.get("build_id", BUILD_ID), 0x1234, 0x7000, 0b101,
    )  # fmt: skip
    pages = b"".join(bytes([n]) * 4096 for n in range(8))
    return common(events.TYPE_FATAL, events.FATAL_BYTES, **changes) + part + pages


def exit_record(**changes: bytes | int) -> bytes:
    size = events.SIZES[events.TYPE_EXIT]
    status, chosen = changes.get("wait_status", 0x8B), changes.get("oom", 0)
    part = events.EXIT.pack(status, chosen, changes.get("unmapped", 0), 0)
    return common(events.TYPE_EXIT, size, **changes) + part


def killer(**changes: bytes | int) -> bytes:
    """A record of pid 1234, which tells who sent pid 77 a SIGTERM."""
    head = events.KILLER.pack(
        events.TYPE_KILLER, changes.get("size", events.KILLER_BYTES), 42, 6_000, 77, 15, 0,
        int(SentFlag.BARE | SentFlag.LEAVING), 4_000, b"sh",
    )  # fmt: skip
    who = common(0, 0, **changes)[events.HEAD.size :][: events.WHO.size]
    tail = events.ARGUMENTS.pack(changes.get("args_len", 5), 9000, b"a\0b\0c")
    return head + who + tail


def test_a_killer_is_told_before_the_death() -> None:
    found = events.decode(killer())
    assert isinstance(found, events.Sent)
    assert found.key == ProcessKey(77, 6_000)
    assert found.sending == Sending(
        who=WHO,
        signal=15,
        code=0,
        flags=SentFlag.BARE | SentFlag.LEAVING,
        parent=ProcessKey(1, 4_000),
        parent_comm="sh",
        arguments=b"a\0b\0c",
        arguments_size=9000,
    )
    unread = events.decode(killer(args_len=-1))
    assert isinstance(unread, events.Sent) and unread.sending.arguments is None


@pytest.mark.parametrize(
    "record",
    [killer()[:-1], killer() + b"\0", killer(args_len=513), killer(exe_len=769)],
    ids=["short", "long", "arguments", "path"],
)
def test_a_damaged_killer_is_refused(record: bytes) -> None:
    with pytest.raises(ProbeError):
        events.decode(record)


def decoded(record: bytes) -> FatalSignal:
    event = events.decode(record)
    assert isinstance(event, FatalSignal)
    return event


def test_a_fatal_signal_is_decoded_whole() -> None:
    fault = events.FAULT.pack(5_000, 1, 41, 0x20, 0x400, 0x7FF0, 1235, 11, SEGV_MAPERR, 0)
    assert events.decode(fatal(fault=fault)) == FatalSignal(
        who=WHO,
        time_ns=42,
        signal=11,
        si_code=SEGV_MAPERR,
        si_addr=0x10,
        siginfo=struct.pack("<iiiiQ", 11, 0, SEGV_MAPERR, 0, 0x10).ljust(128, b"\0"),
        sender=None,
        regs=REGS,
        stack=(
            StackPage(address=0x7000, data=b"\0" * 4096),
            StackPage(address=0x9000, data=b"\2" * 4096),
        ),
        site=CrashSite(build_id=BUILD_ID.hex(), offset=0x1234),
        last_fault=Fault(
            time_ns=41, tid=1235, signal=11, si_code=1, si_addr=0x20, ip=0x400, sp=0x7FF0
        ),
        thread_name="worker",
        fault_access=Access.WRITE,
    )


def test_an_exit_has_its_status_and_sender() -> None:
    sender = events.SENDER.pack(5_000, 77, 1000, 11, 0, b"bash")
    assert events.decode(exit_record(sender=sender)) == Exit(
        who=WHO,
        time_ns=42,
        status=0x8B,
        sender=Sender(pid=77, comm="bash", uid=1000),
        last_fault=None,
    )


def test_an_exit_tells_an_oom_victim() -> None:
    assert events.decode(exit_record(wait_status=9, oom=1, unmapped=1)) == Exit(
        who=WHO,
        time_ns=42,
        status=9,
        sender=None,
        last_fault=None,
        oom=True,
        unmapped="its mappings were not told: too many deaths at a time",
    )


def victim(count: int, *levels: tuple[int, int, int, int]) -> bytes:
    """A record of an OOM kill: of each level id, usage and limit in pages, failed charges."""
    size = events.SIZES[events.TYPE_OOM]
    part = events.OOM.pack(count, 0) + b"".join(events.OOM_LEVEL.pack(*one) for one in levels)
    return (common(events.TYPE_OOM, size) + part).ljust(size, b"\0")


def test_an_oom_victim_and_the_levels_above_it() -> None:
    no_limit = ((1 << 63) - 1) // 4096  # PAGE_COUNTER_MAX <linux/page_counter.h>
    event = events.decode(victim(2, (7, 99, 100, 3), (1, 500, no_limit, 0)))
    assert event == OomVictim(
        who=WHO,
        time_ns=42,
        levels=(
            OomLevel(cgroup_id=7, usage=99 * 4096, limit=100 * 4096, failcnt=3),
            OomLevel(cgroup_id=1, usage=500 * 4096, limit=None, failcnt=0),
        ),
    )


def test_an_oom_victim_with_more_levels_than_there_are_is_refused() -> None:
    with pytest.raises(ProbeError, match="claims 17 levels"):
        events.decode(victim(17))


@pytest.mark.parametrize(
    ("path_len", "found"),
    [
        (
            9,
            MappedObject(
                start=0x1000, end=0x3000, offset=0x2000, executable=True, path="/lib/a.so"
            ),
        ),
        (-1, None),
    ],
)
def test_a_mapped_object_belongs_to_an_exit_to_come(
    path_len: int, found: MappedObject | None
) -> None:
    record = events.MAPPED.pack(
        events.TYPE_MAPPED, events.MAPPED.size, 42, 5_000, 1234, path_len,
        0x1000, 0x3000, 0x2000, 0x5, 0, b"a.so\0lib\0",
    )  # fmt: skip
    assert events.decode(record) == events.Mapped(ProcessKey(1234, 5_000), found)


@pytest.mark.parametrize(
    ("changes", "access"),
    [
        ({"error": 0b100}, Access.READ),
        ({"error": 0b110}, Access.WRITE),
        ({"error": 0b10100}, Access.EXECUTE),
        ({"trap": 13}, None),  # a general protection fault has no address
        ({"code": -6}, None),  # sent by tgkill(2)
        ({"code": 0x80}, None),  # sent by the kernel
    ],
)
def test_how_a_fault_touched_memory(changes: dict[str, int], access: Access | None) -> None:
    assert decoded(fatal(**changes)).fault_access is access


def test_a_limit_of_one_byte_for_its_core_is_told() -> None:
    assert not decoded(fatal()).core_byte
    assert decoded(fatal(told=3)).core_byte


def test_without_siginfo_nothing_is_made_up() -> None:
    event = decoded(fatal(told=0))
    assert (event.si_code, event.si_addr, event.siginfo) == (None, None, b"")


@pytest.mark.parametrize(
    ("changes", "site"),
    [
        ({"status": 2}, None),
        ({"status": -14}, None),
        ({"build_id": BUILD_ID[:16]}, CrashSite(build_id=BUILD_ID[:16].hex(), offset=0x1234)),
        ({"build_id": BUILD_ID[:8]}, CrashSite(build_id=BUILD_ID[:8].hex(), offset=0x1234)),
    ],
)
def test_the_site_is_known_or_absent(changes: dict[str, bytes], site: CrashSite | None) -> None:
    assert decoded(fatal(**changes)).site == site


def test_a_call_to_nowhere_has_no_site() -> None:
    # GIVEN a jump to an address without code, for which the kernel tells the next mapping's
    event = decoded(fatal(address=REGS[16]))
    # THEN none is believed
    assert (event.regs[16], event.site) == (event.si_addr, None)


def test_a_path_that_could_not_be_read_is_absent() -> None:
    assert decoded(fatal(exe_len=-1)).who.exe is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"\xff\xfe", "\\xff\\xfe"),
        (b"a\nb\x1b[2J", "a\nb\x1b[2J"),
        ("grüße".encode(), "grüße"),
        (b"fifteen letters", "fifteen letters"),
    ],
)
def test_hostile_names_become_text(name: bytes, text: str) -> None:
    who = decoded(fatal(comm=name, exe=name + b"\0dir\0")).who
    assert (who.comm, who.exe) == (text, f"/dir/{text}")


@pytest.mark.parametrize(
    "record",
    [
        b"",
        exit_record()[:-1],
        exit_record() + b"\0",
        common(events.TYPE_EXIT, 1 << 31) + bytes(8),
        common(99, events.EVENT_BYTES),
        fatal()[: events.EVENT_BYTES],
        exit_record(exe_len=769),
    ],
    ids=["empty", "short", "long", "size", "type", "cut", "path"],
)
def test_what_is_no_record_is_refused(record: bytes) -> None:
    with pytest.raises(ProbeError):
        events.decode(record)
