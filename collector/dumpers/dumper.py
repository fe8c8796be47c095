"""One dumper that is connected: what it wants, what it has, how it is spoken to."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from typing import NamedTuple

from collector.dumpers.protocol import Gone, Message, receive, send
from collector.dumpers.register import Registration
from collector.linux.peer import Peer
from collector.policy.match import Matcher
from collector.policy.types import Action, Facts, Policy, Rule

MAX_ERRORS = 16  # messages that are wrong
_RULE = "wanted"


class Bid(NamedTuple):
    """Who would take a process, for how much."""

    dumper: int
    name: str
    priority: int
    pin: bool
    peer: Peer


class Dumper:
    """Not thread-safe."""

    def __init__(
        self,
        connection: socket.socket,
        peer: Peer,
        pidfd: int,
        until: float,
        *,
        most_s: float | None = None,
        gone: Callable[[str], None] | None = None,
    ) -> None:
        """until: of time.monotonic(), when it has to have registered. Owns both descriptors.

        most_s, gone: as for Hub.take.
        """
        self.most_s, self.gone = most_s, gone
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.connection, self.peer, self.pidfd, self.until = connection, peer, pidfd, until
        self.id = 0
        self.wants: Registration | None = None
        self.has: set[int] = set()  # events
        self.leaving = False
        self.missed = 0  # bids in a row
        self.errors = 0

    def registered(self, number: int, wants: Registration) -> None:
        self.id, self.wants = number, wants
        rule = Rule(name=_RULE, match=wants.match, action=Action())
        self._matcher = Matcher(Policy(rules=(rule,)))

    @property
    def name(self) -> str:
        return self.wants.name if self.wants else "without a name"

    @property
    def most(self) -> int:
        """Processes that it may have at a time."""
        return self.wants.events if self.wants else 0

    def may_have(self, facts: Facts, *, held: bool) -> bool:
        """Whether it is to be asked about such a process. held: that waits for us."""
        if self.wants is None or self.leaving or len(self.has) >= self.most:
            return False
        return (held or self.wants.pin) and self._matcher.decide(facts).rule == _RULE

    def bid(self, priority: int) -> Bid:
        assert self.wants is not None
        return Bid(self.id, self.wants.name, priority, self.wants.pin, self.peer)

    def tell(self, message: Message) -> bool:
        """Whether it has room for a message; it is not waited for."""
        try:
            send(self.connection, message)
        except OSError:
            return False
        return True

    def hear(self) -> Message | None:
        """What it says next; None: nothing now. Gone at the end, BadMessage."""
        try:
            return receive(self.connection)
        except BlockingIOError:
            return None
        except ConnectionResetError:  # with messages that it has not read
            raise Gone("the other side has closed the connection") from None
        except OSError as error:
            raise Gone(f"its connection broke: {error.strerror}") from error

    def close(self) -> None:
        self.connection.close()
        with contextlib.suppress(OSError):
            os.close(self.pidfd)
