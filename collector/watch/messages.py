"""What the agent and its flight recorder tell each other, over a SOCK_SEQPACKET pair (unix(7)).

One message, one packet, msgpack. Neither side waits for the other.
"""

from __future__ import annotations

import socket
from pathlib import Path

import msgspec

from collector.errors import CorewardError
from collector.model import CallsFacts, SamplesFacts
from collector.policy.types import Action, KubernetesSettings, RecorderSettings, Rule, Trace, Watch

MAX_PACKET = 4 << 20  # bytes; a policy file has 1 MiB at most
_SO_SNDBUFFORCE = 32  # <asm-generic/socket.h>


class Rules(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """To the recorder: what to watch from now on."""

    watch: tuple[Watch, ...]
    settings: RecorderSettings
    min_free: int  # bytes of the store's file system that no snapshot takes
    trace: tuple[Trace, ...] = ()
    defaults: Action = Action()  # what is redacted in snapshots, by these and `rules`
    rules: tuple[Rule, ...] = ()
    kubernetes: KubernetesSettings = KubernetesSettings()


class Ask(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """To the recorder: this process has died; its samples go beside this record."""

    record: str
    pid: int
    start_ns: int
    folder: str  # of the record


class AskCalls(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """To the recorder: this process has died; its threads' last calls go beside this record."""

    record: str
    pid: int
    start_ns: int
    folder: str
    texts: bool = True  # False: none of them, if one has a text that was copied from memory


class Calls(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """To the agent: the answer. Neither facts nor `lost`: it was not traced."""

    record: str
    facts: CallsFacts | None = None
    lost: str | None = None


class Samples(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """To the agent: the answer. Neither facts nor `lost`: it was not watched."""

    record: str
    facts: SamplesFacts | None = None
    lost: str | None = None


class Fired(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """To the agent: a trigger fired. `outcome`: snapshot, limited, or failed with `why`."""

    rule: str
    trigger: str
    outcome: str
    why: str
    record: str | None = None  # id of the snapshot's record


class Counts(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """To the agent, now and then: how it goes. Totals since the recorder started."""

    processes: int  # watched now
    bytes: int  # of their samples
    samples: int
    refused: int  # processes for which there was no room
    traced: int = 0  # threads that keep their last system calls now


ToRecorder = Rules | Ask | AskCalls
ToAgent = Samples | Calls | Fired | Counts


def _as_text(value: object) -> str:
    """A path, the only thing in a policy that msgspec has no form for."""
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} in a message")


def _from_text(kind: type, value: object) -> object:
    return kind(value)


_encoder = msgspec.msgpack.Encoder(enc_hook=_as_text)
to_recorder = msgspec.msgpack.Decoder(ToRecorder, dec_hook=_from_text)
to_agent = msgspec.msgpack.Decoder(ToAgent)


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends, with room for a whole policy in one packet."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, MAX_PACKET)
    return ends


def send(channel: socket.socket, message: ToRecorder | ToAgent) -> None:
    """Send without waiting. CorewardError if the other side is gone or does not read."""
    try:
        channel.send(_encoder.encode(message), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    except OSError as error:
        raise CorewardError(f"no answer: {error.strerror}") from error
