"""The socket at which the flight recorder is asked for calls, without a recorder."""

from __future__ import annotations

import os
import select
import socket
import threading
from pathlib import Path

import pytest

from collector.model import CallsFacts
from collector.watch import door
from collector.watch.door import Door, kept_calls
from collector.watch.messages import AskCalls, Calls

FACTS = CallsFacts(threads=1, calls=2, rule="a", file="calls.zst")


def serve(one: Door, answer: Calls | None, asked: list[AskCalls]) -> threading.Thread:
    """Answer one question, as the recorder does."""

    def run() -> None:
        while not asked:
            poll = select.poll()
            for descriptor in one.descriptors:
                poll.register(descriptor, select.POLLIN)
            poll.poll()
            for ask, connection in one.questions():
                asked.append(ask)
                if answer is not None:
                    one.answer(connection, answer)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def ask(store: Path) -> CallsFacts | str | None:
    return kept_calls(store, "0123", os.getpid(), store / "record")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Calls(record="0123", facts=FACTS), FACTS),
        (Calls(record="0123"), None),
        (Calls(record="0123", lost="no memory"), "no memory"),
        (Calls(record="4567", facts=FACTS), "gave no answer: it was no answer to the question"),
        (None, "the flight recorder gave no answer: "),
    ],
    ids=["calls", "not traced", "lost", "of another", "gone"],
)
def test_what_is_answered(tmp_path: Path, answer: Calls | None, expected: object) -> None:
    one, asked = Door(tmp_path), list[AskCalls]()
    one.open()
    thread = serve(one, answer, asked)
    found = ask(tmp_path)
    thread.join()
    if isinstance(expected, str):
        assert isinstance(found, str)
        assert expected in found
    else:
        assert found == expected
    assert (asked[0].pid, asked[0].folder) == (os.getpid(), str(tmp_path / "record"))
    one.close()
    # AND when it has ended there is none, whatever it has left behind
    assert ask(tmp_path) is None


def test_without_an_agent_there_is_none(tmp_path: Path) -> None:
    assert ask(tmp_path) is None


def test_who_does_not_answer_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "PATIENCE_S", 0.05)
    one = Door(tmp_path)
    one.open()
    assert ask(tmp_path) == "the flight recorder gave no answer: it took longer than 0.05 s"
    one.close()


def test_a_successor_takes_the_place(tmp_path: Path) -> None:
    # GIVEN a recorder whose successor has opened already
    old, new, asked = Door(tmp_path), Door(tmp_path), list[AskCalls]()
    old.open()
    new.open()
    old.close()
    thread = serve(new, Calls(record="0123", facts=FACTS), asked)
    assert ask(tmp_path) == FACTS
    thread.join()
    new.close()


def test_who_says_nothing_or_nonsense_keeps_nobody_waiting(tmp_path: Path) -> None:
    one = Door(tmp_path)
    one.open()
    silent, mad = (socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2))
    with silent, mad:
        for connection in (silent, mad):
            connection.connect(f"{tmp_path}/{door.SOCKET}")
        mad.send(b"\xff nonsense")
        assert list(one.questions()) == []
        assert len(one.descriptors) == 2  # the listener, and the silent one
    assert list(one.questions()) == []
    assert len(one.descriptors) == 1
    one.close()


def test_the_place_is_for_its_owner_alone(tmp_path: Path) -> None:
    one = Door(tmp_path)
    one.open()
    assert (tmp_path / door.SOCKET).stat().st_mode & 0o777 == 0o600
    one.close()
