"""Dumpers over their protocol: who is asked, who has a process, and what ends it.

The dumpers are this very process at the other ends of socket pairs; no process dies here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from collector.dumpers.client import Client, Refused
from collector.dumpers.desk import Dumped
from collector.dumpers.dumper import MAX_ERRORS, Bid
from collector.dumpers.hub import MAX_DUMPERS, Hub
from collector.dumpers.protocol import (
    GENERIC,
    HIGHPRIORITY,
    NOMATCH,
    SPECIAL,
    Gone,
    Message,
    message,
    receive,
    send,
)
from collector.linux.peer import peer_of
from collector.model import Cause
from collector.native.contract import Bidder
from collector.policy.types import Facts

PATIENCE = 60.0  # seconds; of what happens in microseconds
LONG = 60.0  # seconds, of what must not be over in a test
FACTS = Facts(cause=Cause.SIGNAL, exe="/usr/bin/db", comm="db", uid=1000, signal=11)
EVENT = message("EVENT", pid=812, comm="db")
Join = Callable[..., Client]


class Reached:
    """What the native part is told."""

    def __init__(self) -> None:
        self.rows: list[Bidder] = []
        self.missed = 0

    def tell(self, rows: list[Bidder]) -> None:
        self.rows = rows

    def miss(self) -> None:
        self.missed += 1


@contextlib.contextmanager
def hub_of(bid_s: float = LONG, most_s: float = LONG) -> Iterator[tuple[Hub, Reached]]:
    reached = Reached()
    hub = Hub(bid_s, most_s, reached.tell, reached.miss)
    try:
        yield hub, reached
    finally:
        hub.close(0)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_of() as (made, _):
        yield made


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.0005)


def connection(hub: Hub, pidfd: int | None = None) -> socket.socket:
    """The dumper's end of a new connection. pidfd: of who is said to be there; None: of us."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(PATIENCE)
    hub.take(theirs, peer_of(theirs), os.pidfd_open(os.getpid()) if pidfd is None else pidfd)
    return ours


def join(hub: Hub, name: str, **how: Any) -> Client:
    return Client(connection(hub), name, **how)


def ask(hub: Hub, *, held: bool = True, facts: Facts = FACTS) -> queue.SimpleQueue[list[Bid]]:
    answers: queue.SimpleQueue[list[Bid]] = queue.SimpleQueue()
    hub.ask(facts, EVENT, held=held, done=answers.put)
    return answers


def dump(hub: Hub, bid: Bid, event: Message = EVENT) -> queue.SimpleQueue[Dumped]:
    answers: queue.SimpleQueue[Dumped] = queue.SimpleQueue()
    hub.dump(bid, event, held=True, done=answers.put)
    return answers


def order(answers: queue.SimpleQueue[list[Bid]]) -> list[tuple[str, int]]:
    return [(bid.name, bid.priority) for bid in answers.get(timeout=PATIENCE)]


def given(hub: Hub, client: Client) -> tuple[Message, queue.SimpleQueue[Dumped]]:
    """A process that this dumper has, which has bid a fixed priority."""
    (bid,) = ask(hub).get(timeout=PATIENCE)
    answers = dump(hub, bid)
    event = client.receive()
    assert event.verb == "DUMP"
    return event, answers


def test_the_highest_bid_comes_first_ties_in_the_order_of_registration(hub: Hub) -> None:
    # GIVEN dumpers with all of FreeBSD's priorities, one that is asked each time, and a tie
    clients = [
        join(hub, "generic", priority=GENERIC),
        join(hub, "special-1", priority=SPECIAL),
        join(hub, "high", priority=HIGHPRIORITY),
        join(hub, "asked"),
        join(hub, "special-2", priority=SPECIAL),
        join(hub, "declines"),
    ]
    # WHEN a process dies, and who is asked bids by what it sees
    answers = ask(hub)
    for client, priority in ((clients[3], 7), (clients[5], NOMATCH)):
        event = client.receive()
        assert (event.verb, event.get("pid"), event.get("held")) == ("PROBE", "812", "yes")
        assert answers.empty()
        client.bid(event, priority)
    # THEN
    assert order(answers) == [
        ("high", 100),
        ("special-1", 50),
        ("special-2", 50),
        ("asked", 7),
        ("generic", 0),
    ]


def test_who_wants_other_processes_is_not_asked() -> None:
    with hub_of() as (hub, reached):
        web = join(hub, "web", match=[("exe", "/usr/bin/web"), ("exe", "/usr/bin/www")])
        aborts = join(hub, "abort", match=[("signal", "SIGABRT")], priority=SPECIAL)
        db = join(hub, "db", match=[("exe", "/usr/*"), ("uid", "1000")], priority=SPECIAL)
        assert order(ask(hub)) == [("db", SPECIAL)]
        assert hub.wanted(FACTS, held=True)
        # AND the native part holds what they may want
        rows = [b"/usr/bin/web*", b"/usr/bin/www*", b"", b"/usr/**"]
        assert [row.exe for row in reached.rows] == rows
        # AND nothing when they have left
        for client in (web, aborts, db):
            client.leave()
            assert client.receive().verb == "UNREGISTERED"
        assert (reached.rows, hub.wanted(FACTS, held=True)) == ([], False)


def test_a_process_that_was_released_is_for_those_to_whom_pinned_memory_will_do(hub: Hub) -> None:
    clients = [join(hub, "holds", priority=HIGHPRIORITY)]
    clients.append(join(hub, "pins", priority=SPECIAL, pin=True))
    assert order(ask(hub, held=False)) == [("pins", SPECIAL)]
    assert order(ask(hub, held=True)) == [("holds", HIGHPRIORITY), ("pins", SPECIAL)]


def test_dumpers_that_do_with_pinned_memory_hold_nobody() -> None:
    with hub_of() as (hub, reached):
        clients = [join(hub, "pins", priority=SPECIAL, pin=True)]
        assert reached.rows == []
        clients.append(join(hub, "holds", priority=SPECIAL))
        assert len(reached.rows) == 1


def test_it_has_the_process_until_it_says_continue(hub: Hub) -> None:
    # GIVEN a dumper that has a process, with descriptors
    client = join(hub, "mine", priority=SPECIAL)
    (bid,) = ask(hub).get(timeout=PATIENCE)
    read, write = os.pipe()
    answers = dump(hub, bid, Message("EVENT", EVENT.fields, {"mem": write}))
    event = client.receive()
    os.close(write)
    assert (event.verb, event.get("comm"), list(event.fds)) == ("DUMP", "db", ["mem"])
    os.write(event.fds["mem"], b"x")
    assert os.read(read, 1) == b"x"
    event.close()
    os.close(read)
    # WHEN it says that it has failed
    assert answers.empty()
    client.let_go(event, errno.ENOSPC, "half of it is there\nand no more")
    # THEN that is what became of it
    dumped = answers.get(timeout=PATIENCE)
    assert (dumped.status, dumped.note) == (errno.ENOSPC, "half of it is there\nand no more")
    assert not dumped.hung


def test_only_who_has_it_may_release_it(hub: Hub) -> None:
    holder, other = join(hub, "holder", priority=SPECIAL), join(hub, "other", match=[("uid", "5")])
    event, answers = given(hub, holder)
    # WHEN another dumper says continue
    other.let_go(event, 0)
    refused = other.receive()
    # THEN it is refused, and the process waits on
    assert (refused.verb, refused.get("status")) == ("ERROR", str(errno.EPERM))
    assert answers.empty()
    # AND nobody releases it twice
    holder.let_go(event, 0)
    assert answers.get(timeout=PATIENCE).status == 0
    holder.let_go(event, 0)
    refused = holder.receive()
    assert (refused.verb, refused.get("status")) == ("ERROR", str(errno.ESRCH))


def test_another_process_with_the_same_connection_may_not_speak(hub: Hub) -> None:
    client = join(hub, "mine", priority=SPECIAL)
    event, answers = given(hub, client)
    # WHEN a child that has inherited the connection says continue
    said = f"CONTINUE\nevent={event.get('event')}\nstatus=0\n"
    code = f"import socket; socket.socket(fileno={client.fileno()}).send({said.encode()!r})"
    subprocess.run(
        ["/usr/bin/python3", "-c", code], pass_fds=[client.fileno()], check=True, timeout=PATIENCE
    )
    # THEN the process waits on
    refused = client.receive()
    assert (refused.verb, refused.get("status")) == ("ERROR", str(errno.EPERM))
    assert answers.empty()


@pytest.mark.parametrize("how", ["closes", "ends"])
def test_one_that_goes_has_bid_for_nothing_and_has_nothing(hub: Hub, how: str) -> None:
    with subprocess.Popen(["/usr/bin/cat"], stdin=subprocess.PIPE) as process:
        # GIVEN a dumper that has a process, and is asked about another one
        client = Client(connection(hub, os.pidfd_open(process.pid)), "asked", events=2)
        first = ask(hub)
        client.bid(client.receive(), SPECIAL)
        (bid,) = first.get(timeout=PATIENCE)
        had = dump(hub, bid)
        assert client.receive().verb == "DUMP"
        second = ask(hub)
        # WHEN it goes
        process.kill() if how == "ends" else client.close()
        # THEN both are over at once
        dumped = had.get(timeout=PATIENCE)
        assert dumped.status is None
        assert ("has ended" if how == "ends" else "closed") in dumped.note
        assert order(second) == []
        wait_until(lambda: hub.names() == [])


def test_one_that_does_not_bid_in_time_is_not_waited_for() -> None:
    with hub_of(bid_s=0.02) as (hub, reached):
        client = join(hub, "slow")
        fixed = join(hub, "fixed", priority=SPECIAL)
        # WHEN it lets three processes wait, THEN it is sent away
        for _ in range(3):
            assert hub.names() == ["slow", "fixed"]
            assert order(ask(hub)) == [("fixed", SPECIAL)]
            assert client.receive().verb == "PROBE"
        with pytest.raises(Gone):
            client.receive()
        assert (reached.missed, hub.names()) == (3, ["fixed"])
        fixed.close()


def test_one_that_hangs_loses_the_process() -> None:
    with hub_of(most_s=0.02) as (hub, _):
        client = join(hub, "hangs", priority=SPECIAL)
        _, answers = given(hub, client)
        dumped = answers.get(timeout=PATIENCE)
        assert (dumped.status, dumped.hung) == (None, True)
        assert dumped.note == "it was not done in time (0.02 s)"
        # AND is told
        ended = client.receive()
        assert (ended.verb, ended.get("why")) == ("END", dumped.note)


def test_several_processes_at_a_time_and_no_more_than_it_takes(hub: Hub) -> None:
    client = join(hub, "two", priority=SPECIAL, events=2)
    held = [given(hub, client) for _ in range(2)]
    assert order(ask(hub)) == []
    for event, answers in reversed(held):
        client.let_go(event, 0)
        assert answers.get(timeout=PATIENCE).status == 0
    assert order(ask(hub)) == [("two", SPECIAL)]


def test_to_leave_waits_for_dumps_in_progress(hub: Hub) -> None:
    client = join(hub, "leaves", priority=SPECIAL)
    event, answers = given(hub, client)
    # WHEN it leaves
    client.leave()
    client.let_go(message("DUMP", event=999), 0)  # (an answer says that the other was heard)
    assert client.receive().verb == "ERROR"
    # THEN it is asked no more, and what it has is its own until it says continue
    assert order(ask(hub)) == []
    client.let_go(event, 0)
    assert answers.get(timeout=PATIENCE).status == 0
    assert client.receive().verb == "UNREGISTERED"
    with pytest.raises(Gone):
        client.receive()


def test_the_agent_that_ends_waits_for_dumps_in_progress() -> None:
    with hub_of() as (hub, reached):
        client = join(hub, "busy", priority=SPECIAL)
        event, answers = given(hub, client)
        # WHEN it ends while the dumper is still at work
        ending = threading.Thread(target=hub.close, args=(PATIENCE,))
        ending.start()
        wait_until(lambda: not reached.rows)
        assert answers.empty()
        client.let_go(event, 0)
        # THEN what the dumper says counts
        assert answers.get(timeout=PATIENCE).status == 0
        ending.join(PATIENCE)
        assert client.receive().verb == "UNREGISTERED"
        assert not hub.wanted(FACTS, held=True)
        assert reached.rows == []


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"HELLO\n", "HELLO before REGISTER"),
        (b"\xff\xfe", "not a message"),
        (b"REGISTER\nversion=2\nname=x\nbid=yes\n", "this agent speaks version 1"),
        (b"REGISTER\nname=x\nbid=yes\n", "version=: not a number"),
        (b"REGISTER\nversion=1\nbid=yes\n", "name: expected up to 64 letters"),
        (b"REGISTER\nversion=1\nname=a b\nbid=yes\n", "name: expected up to 64 letters"),
        (b"REGISTER\nversion=1\nname=x\n", "give either bid=yes or priority=N"),
        (b"REGISTER\nversion=1\nname=x\nbid=yes\npriority=3\n", "give either"),
        (b"REGISTER\nversion=1\nname=x\npriority=-1\n", "priority=-1: not from 0"),
        (b"REGISTER\nversion=1\nname=x\npriority=5\nevents=65\n", "events=65: not from 1 to 64"),
        (b"REGISTER\nversion=1\nname=x\npriority=5\npin=1\n", "pin=1: neither yes nor no"),
        (b"REGISTER\nversion=1\nname=x\npriority=5\nmatch.pid=3\n", "no field 'match.pid'"),
        (b"REGISTER\nversion=1\nname=x\npriority=5\nmatch.signal=KILLER\n", "match.signal"),
        (b"REGISTER\nversion=1\nname=x\npriority=5\nmatch.cause=exit\n", "expected one of signal"),
        (b"REGISTER\nversion=1\nname=x\npriority=5\nfoo\n", "'foo' is no field"),
        (b"REGISTER\n" + b"match.exe=x\n" * 33 + b"version=1\nname=x\nbid=yes\n", "more than 32"),
    ],
)
def test_a_wrong_registration_is_refused_with_the_reason(hub: Hub, said: bytes, why: str) -> None:
    with connection(hub) as ours:
        ours.send(said)
        refused = receive(ours)
        assert refused.verb == "REFUSED"
        assert why in (refused.get("why") or "")
        with pytest.raises(Gone):
            receive(ours)


def test_who_says_nothing_is_sent_away(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collector.dumpers.hub._REGISTER_S", 0.02)
    with connection(hub) as ours:
        assert receive(ours).get("why") == "no REGISTER in time"


def test_names_are_unique_and_dumpers_are_bounded(hub: Hub) -> None:
    clients = [join(hub, f"number-{number}", priority=1) for number in range(MAX_DUMPERS - 1)]
    with pytest.raises(Refused, match="another dumper is named number-3"):
        join(hub, "number-3", priority=1)
    clients.append(join(hub, "last", priority=1))
    with pytest.raises(Refused, match="too many dumpers"):
        join(hub, "one-more", priority=1)
    assert len(hub.names()) == len(clients) == MAX_DUMPERS


def test_one_that_writes_nonsense_without_end_is_sent_away(hub: Hub) -> None:
    with connection(hub) as ours:
        client = Client(ours, "confused", priority=1)
        event, answers = given(hub, client)
        for _ in range(MAX_ERRORS + 1):
            send(ours, message("CONTINUE", event=event.get("event"), status="ok"))
        for _ in range(MAX_ERRORS + 1):
            assert receive(ours).verb == "ERROR"
        assert answers.get(timeout=PATIENCE).status is None
        assert receive(ours).verb == "END"


def test_bids_for_nothing_without_end_are_nonsense_as_well(hub: Hub) -> None:
    with connection(hub) as ours:
        client = Client(ours, "eager")
        for _ in range(MAX_ERRORS):
            client.bid(message("PROBE", event=999), SPECIAL)
        # (one that is asked and answers begins anew)
        answers = ask(hub)
        client.bid(client.receive(), SPECIAL)
        assert order(answers) == [("eager", SPECIAL)]
        for _ in range(MAX_ERRORS + 1):
            client.bid(message("PROBE", event=999), SPECIAL)
        with pytest.raises(Gone):
            client.receive()


def test_a_dumper_that_crashes_is_not_asked_about_itself(hub: Hub) -> None:
    # GIVEN a dumper that has a process
    client = join(hub, "crashes", priority=SPECIAL)
    _, answers = given(hub, client)
    # WHEN it is handed over itself, and waits, THEN it has nothing any more
    hub.crashed(os.getpid())
    assert answers.get(timeout=PATIENCE).note == "it has crashed"
    assert not hub.wanted(FACTS, held=True)


def test_one_that_does_not_read_is_not_waited_for(hub: Hub) -> None:
    with connection(hub) as ours:
        client = Client(ours, "deaf", events=64)
        waiting = [ask(hub) for _ in range(3000)]
        # THEN as soon as its socket is full it counts as not bidding, and is sent away
        assert order(waiting[-1]) == []
        assert hub.names() == []
        client.close()


def test_descriptors_that_a_dumper_sends_are_closed(hub: Hub) -> None:
    with connection(hub) as ours:
        client = Client(ours, "generous", priority=1)
        read, write = os.pipe()
        send(ours, Message("UNREGISTER", (), {"present": write}))
        os.close(write)
        assert client.receive().verb == "UNREGISTERED"
        os.set_blocking(read, False)
        assert os.read(read, 1) == b""  # nobody has the other end
        os.close(read)


def test_values_survive_whatever_is_in_them(hub: Hub) -> None:
    client = join(hub, "x", priority=1)
    (bid,) = ask(hub).get(timeout=PATIENCE)
    hostile = "a\\n\nevent=7\n\\\\\udcff=ü\tb\\"
    dump(hub, bid, message("EVENT", comm=hostile, exe=""))
    event = client.receive()
    assert (event.get("comm"), event.get("exe"), event.all("event")[0]) == (hostile, "", "2")
    assert len(event.all("event")) == 1
