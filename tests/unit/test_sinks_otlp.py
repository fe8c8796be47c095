"""Deaths on their way to an OTLP collector: a real HTTP server that takes them apart."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from collector.diagnosis import Category, Diagnosis
from collector.model import Cause, Frame, Record, Signature
from collector.policy.types import OtlpSettings
from collector.sinks import otlp, otlp_worker
from collector.sinks.otlp import Otlp
from collector.sinks.otlp_document import document
from collector.sinks.otlp_worker import Client, Pump
from collector.sinks.tally import Tally
from collector.store.store import Store
from tests.otlp_collector import Collector, attributes
from tests.unit.store_samples import SEGFAULT
from tests.unit.test_pods_files import NAMED

PATIENCE = 60.0
DIAGNOSIS = Diagnosis(category=Category.NULL_DEREFERENCE)


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", create=True) as made:
        yield made


def death(number: int, **differs: object) -> Record:
    return msgspec.structs.replace(SEGFAULT, id=f"{number:016x}", **differs)


def pump(ids: list[str], collector: Collector, store: Store) -> tuple[int, int, int]:
    """Send the records of these ids, as the worker does; taken, sent, lost."""
    read, write = os.pipe()
    os.write(write, "".join(f"{one}\n" for one in ids).encode())
    os.close(write)
    memory = Tally.new()
    tally = Tally(memory)
    Pump(read, Client(OtlpSettings(endpoint=collector.url)), store.path, tally).run()
    for fd in (read, memory):
        os.close(fd)
    return tally.counts


def test_a_crash_by_the_semantic_conventions() -> None:
    frames = [Frame(pc=0x1000, function="inner", offset=0x12, module="/usr/bin/victim")]
    known = Signature(id="0123456789ab", text="SIGSEGV near-null | inner")
    record = death(
        7, reason="SIGSEGV: it went", frames=frames, uid=1000, signature=known, diagnosis=DIAGNOSIS
    )
    (resource,) = document([record], "host-1")["resourceLogs"]
    named = {one["key"]: one["value"]["stringValue"] for one in resource["resource"]["attributes"]}
    assert named == {"host.name": "host-1", "os.type": "linux", "service.name": "coreward"}
    (log,) = resource["scopeLogs"][0]["logRecords"]
    assert (log["eventName"], log["severityNumber"]) == ("app.crash", 21)
    assert log["body"] == {"stringValue": "SIGSEGV: it went"}
    assert int(log["timeUnixNano"]) == round(record.time.timestamp() * 1e6) * 1000
    found = attributes(log)
    wanted = {
        "app.crash.id": record.id,
        "coreward.signature": "0123456789ab",
        "coreward.category": "null-dereference",
        "exception.type": "SIGSEGV",
        "exception.message": "SIGSEGV: it went",
        "exception.stacktrace": "#0   0x0000000000001000 inner + 0x12 (victim)",
        "process.pid": str(record.pid),
        "process.user.id": "1000",
        "thread.name": "worker-3",
    }
    assert {name: found.get(name) for name in wanted} == wanted
    # AND nothing of its arguments, which may hold passwords
    assert not any("command" in name for name in found)


def test_a_death_in_a_pod_names_it() -> None:
    (resource,) = document([death(7, pod=NAMED)], "host-1")["resourceLogs"]
    found = attributes(resource["scopeLogs"][0]["logRecords"][0])
    assert {k: v for k, v in found.items() if k.startswith(("k8s.", "container."))} == {
        "k8s.namespace.name": "shop",
        "k8s.pod.name": "web-0",
        "k8s.pod.uid": NAMED.uid,
        "k8s.container.name": "app",
        "container.id": NAMED.container_id,
        "container.image.name": NAMED.image,
    }


def test_a_kill_is_another_event() -> None:
    (resource,) = document([death(7, cause=Cause.KILLED)], "host-1")["resourceLogs"]
    (log,) = resource["scopeLogs"][0]["logRecords"]
    assert (log["eventName"], log["severityText"]) == ("coreward.death", "WARN")
    assert "app.crash.id" not in attributes(log)


def test_what_is_in_the_store_is_sent(collector: Collector, store: Store) -> None:
    # GIVEN more records than fit into one request, and one that was removed
    records = [death(number) for number in range(otlp_worker.TOGETHER + 10)]
    for record in records:
        store.put(record)
    counts = pump([record.id for record in records] + ["f" * 16], collector, store)
    # THEN all that there are arrive, and the other one is counted
    assert [attributes(log)["coreward.id"] for log in collector.deaths] == [r.id for r in records]
    assert len(collector.requests) == 2
    assert counts == (len(records) + 1, len(records), 1)
    assert collector.headers[0]["Content-Type"] == "application/json"


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_collector_that_is_busy_is_asked_again(
    status: int, collector: Collector, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    def rest(_: Pump, seconds: float) -> bool:
        waited.append(seconds)
        return True

    monkeypatch.setattr(Pump, "_rest", rest)
    # GIVEN one that says "later" three times, once with a time
    later = (status, {"Retry-After": "7"}, b"")
    collector.answers = [(status, {}, b""), (status, {}, b""), later]
    store.put(death(1))
    assert pump([death(1).id], collector, store) == (1, 1, 0)
    # THEN it is asked ever more slowly, and no sooner than it says
    assert 0.5 <= waited[0] <= 1 and 1 <= waited[1] <= 2 and waited[2] == 7
    assert len(collector.deaths) == 1


def test_nobody_listens(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN a collector that has gone for good, and an agent that has ended
    collector = Collector()
    collector.close()
    monkeypatch.setattr(otlp_worker, "LAST_S", 0.0)
    monkeypatch.setattr(otlp_worker, "FIRST_S", 0.001)
    store.put(death(1))
    # THEN it is given up, and counted
    assert pump([death(1).id], collector, store) == (1, 0, 1)


@pytest.mark.parametrize("status", [400, 404, 301, 500])
def test_a_collector_that_refuses(status: int, collector: Collector, store: Store) -> None:
    collector.answers = [(status, {"Location": "http://127.0.0.1:1/"}, b"")]
    for number in (1, 2):
        store.put(death(number))
    # THEN it is not asked again, and it is known what was lost
    assert pump([death(number).id for number in (1, 2)], collector, store) == (2, 0, 2)
    assert len(collector.headers) == 1


@pytest.mark.parametrize(
    ("answer", "lost"),
    [
        (b'{"partialSuccess": {"rejectedLogRecords": "1"}}', 1),
        (b'{"partialSuccess": {"rejectedLogRecords": 99}}', 2),
        (b'{"partialSuccess": {"rejectedLogRecords": -5}}', 0),
        (b'{"partialSuccess": null}', 0),
        (b"[1]", 0),
        (b"\xff not JSON", 0),
    ],
)
def test_what_a_collector_rejects(
    answer: bytes, lost: int, collector: Collector, store: Store
) -> None:
    collector.answers = [(200, {}, answer)]
    for number in (1, 2):
        store.put(death(number))
    ids = [death(number).id for number in (1, 2)]
    assert pump(ids, collector, store) == (2, 2 - lost, lost)


def made(collector: Collector, store: Store) -> Otlp:
    settings = OtlpSettings(endpoint=collector.url, headers=(("authorization", "Bearer x"),))
    return Otlp(settings, store.path)


def test_the_agent_s_side(collector: Collector, store: Store) -> None:
    # GIVEN a real worker
    one = made(collector, store)
    for number in range(3):
        store.put(death(number))
        one.put(death(number).id)
    # THEN deaths arrive with the headers of the policy
    assert len(collector.wait(3)) == 3
    assert collector.headers[0]["Authorization"] == "Bearer x"
    # AND none is left at the end, also if a service manager stops the worker as well
    assert one._worker is not None
    one._worker.terminate()
    store.put(death(4))
    one.put(death(4).id)
    one.close(PATIENCE)
    assert (one.sent, one.lost) == (4, 0)


def test_a_worker_that_is_killed(
    collector: Collector, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otlp, "_RESTART_S", 0.0)
    one = made(collector, store)
    store.put(death(1))
    one.put(death(1).id)
    collector.wait(1)
    # WHEN it is killed THEN the next one goes on
    worker = one._worker
    assert worker is not None
    worker.kill()
    worker.wait()
    store.put(death(2))
    one.put(death(2).id)
    assert len(collector.wait(2)) == 2
    one.close(PATIENCE)
    # (the first may have been killed before it had counted what the collector had taken)
    assert one.sent + one.lost == 2 and one.sent >= 1


def test_more_than_can_wait_is_counted(
    collector: Collector, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN that no worker can be started
    def fails(*_: object, **__: object) -> None:
        raise OSError("no memory")

    monkeypatch.setattr(otlp.children, "start", fails)
    one = made(collector, store)
    # WHEN very many die THEN what the pipe has no room for is lost, and so is the rest at the end
    for _ in range(5000):
        one.put("0" * 16)
    assert 0 < one.lost < 5000
    one.close(0.0)
    assert (one.sent, one.lost) == (0, 5000)
