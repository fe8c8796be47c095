"""The agent's side of the flight recorder: starts it, asks it, hears what it did.

A thread listens. A recorder that ends by itself is started again; what was asked of it is answered
with why there is nothing.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

from collector.errors import CorewardError
from collector.export.metrics import Metrics
from collector.linux import children
from collector.model import CallsFacts, Record, SamplesFacts
from collector.policy.types import Policy, RecorderSettings
from collector.store.store import Store
from collector.watch.messages import (
    MAX_PACKET,
    Ask,
    AskCalls,
    Calls,
    Counts,
    Fired,
    Rules,
    Samples,
    ToAgent,
    pair,
    send,
    to_agent,
)

log = logging.getLogger(__name__)

_ANSWER_S = 90.0  # unwinding may take half a minute, and others may be before it
_RESTART_S = 5.0
_END_S = 10.0  # that the recorder has to end by itself, in seconds
_LOOK_S = 1.0


# The samples of a death, or its last calls; why there are none; None: it was not watched
Answer = SamplesFacts | CallsFacts | str | None
Answered = Callable[[Answer], None]


class FlightRecorder:
    """Runs while the policy has `watch` or `trace` rules. Any thread may call its methods."""

    def __init__(self, store: Store, metrics: Metrics, announce: Callable[[Record], None]) -> None:
        """announce: is given the record of each snapshot that a trigger took."""
        self._store = store
        self._metrics = metrics
        self._announce = announce
        self._lock = threading.Lock()
        self._rules = Rules(watch=(), settings=RecorderSettings(), min_free=0)
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._asked: dict[tuple[str, str], tuple[Answered, float]] = {}  # by record and what
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._counted = Counts(processes=0, bytes=0, samples=0, refused=0)
        # told of each trigger that fires: rule, trigger, outcome, why, id of the snapshot's record
        self.on_fired: Callable[[str, str, str, str, str | None], None] = lambda *_: None

    def configure(self, policy: Policy) -> None:
        """Watch by this policy from now on; the recorder runs if there is something to watch."""
        with self._lock:
            self._rules = Rules(
                watch=policy.watch,
                settings=policy.recorder,
                trace=policy.trace,
                min_free=policy.store.min_free,
                defaults=policy.defaults,
                rules=policy.rules,
                kubernetes=policy.kubernetes,
            )
            if self._channel is None:
                if self._is_wanted:
                    self._start()
            elif self._is_wanted:
                self._send_rules(self._channel)
            else:
                _end(self._channel)

    def ask(self, record: Record, answered: Answered) -> bool:
        """Ask for the samples of this death; whether there will be an answer, once, from any
        thread. False: nothing is watched.
        """
        return bool(self._rules.watch) and self._ask(Ask, "samples", record, answered)

    def ask_calls(self, record: Record, answered: Answered, *, texts: bool) -> bool:
        """The same for the last system calls of its threads; texts: whether they may have some.
        False: nothing is traced."""
        if not self._rules.trace:
            return False
        return self._ask(partial(AskCalls, texts=texts), "calls", record, answered)

    def _ask(
        self, kind: Callable[..., Ask | AskCalls], what: str, record: Record, answered: Answered
    ) -> bool:
        key = record.id, what
        with self._lock:
            if self._channel is None:
                return False
            self._asked[key] = answered, time.monotonic() + _ANSWER_S
            try:
                ask = kind(
                    record=record.id,
                    pid=record.pid,
                    start_ns=record.start_ns,
                    folder=str(self._store.folder(record.id)),
                )
                send(self._channel, ask)
                return True
            except CorewardError as error:
                del self._asked[key]
                why = str(error)
        answered(f"the flight recorder gave {why}")
        return True

    def close(self, patience: float = _ANSWER_S) -> None:
        """Let it finish what it was asked for, within `patience` seconds, and end it."""
        self._closing.set()
        with self._lock:
            channel, process, thread = self._channel, self._process, self._thread
        if channel is not None:
            _end(channel)
        if thread is not None:
            thread.join(patience)
        if process is not None and process.poll() is None:
            process.kill()

    # ---- inside

    @property
    def _is_wanted(self) -> bool:
        return bool(self._rules.watch or self._rules.trace)

    def _start(self) -> None:
        """With the lock held."""
        ours, theirs = pair()
        with theirs:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-s", "-m", "collector.watch"),
                    *(str(theirs.fileno()), str(self._store.path)),
                ],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        ours.settimeout(_LOOK_S)
        self._channel = ours
        self._send_rules(ours)
        self._thread = threading.Thread(target=self._listen, args=(ours,), name="watch")
        self._thread.daemon = True
        self._thread.start()

    def _send_rules(self, channel: socket.socket) -> None:
        try:
            send(channel, self._rules)
        except CorewardError as error:
            self._metrics.errors.labels("watch").inc()
            log.error("watch: the flight recorder gave %s", error)

    def _listen(self, channel: socket.socket) -> None:
        """Until it ends; then start another, unless the agent ends."""
        while True:
            try:
                packet = channel.recv(MAX_PACKET)
            except TimeoutError:
                packet = None
            except OSError:
                break
            self._expire()
            if packet is None:
                continue
            if not packet:
                break
            try:
                self._take(to_agent.decode(packet))
            except Exception:  # what comes next is worth hearing all the same
                self._metrics.errors.labels("watch").inc()
                log.exception("watch: a message could not be dealt with")
        with self._lock:
            self._channel = None
            asked, self._asked = self._asked, {}
            process, self._process = self._process, None
        channel.close()
        self._metrics.watched.set(0)
        self._metrics.watched_bytes.set(0)
        self._metrics.traced.set(0)
        status = None
        if process is not None:
            children.has_ended(process.pid, _END_S)
            children.kill(process)  # what it reads of others may keep it for ever
            status = process.returncode
        for answered, _ in asked.values():
            self._answer(answered, "the flight recorder ended")
        if self._closing.is_set() or not self._is_wanted:
            return
        self._metrics.errors.labels("watch").inc()
        log.error("watch: the flight recorder ended with status %s", status)
        if not self._closing.wait(_RESTART_S):
            with self._lock:
                if self._channel is None and self._is_wanted:
                    self._start()

    def _expire(self) -> None:
        now = time.monotonic()
        with self._lock:
            late = [key for key, (_, until) in self._asked.items() if until < now]
            unanswered = [self._asked.pop(key)[0] for key in late]
        for answered in unanswered:
            self._answer(answered, "the flight recorder did not answer")

    def _answer(self, answered: Answered, answer: Answer) -> None:
        try:
            answered(answer)
        except Exception:  # others wait for their answers as well
            self._metrics.errors.labels("watch").inc()
            log.exception("watch: an answer could not be taken")

    def _take(self, message: ToAgent) -> None:
        if isinstance(message, Samples | Calls):
            self._answered(message)
        elif isinstance(message, Fired):
            self._fired(message)
        else:
            self._count(message)

    def _answered(self, answer: Samples | Calls) -> None:
        key = answer.record, "samples" if isinstance(answer, Samples) else "calls"
        with self._lock:
            answered, _ = self._asked.pop(key, (None, 0.0))
        if answered is not None:
            self._answer(answered, answer.facts if answer.lost is None else answer.lost)

    def _fired(self, fired: Fired) -> None:
        self._metrics.triggers.labels(fired.rule, fired.trigger, fired.outcome).inc()
        self.on_fired(fired.rule, fired.trigger, fired.outcome, fired.why, fired.record)
        tell = log.warning if fired.outcome == "failed" else log.info
        tell("watch: %s: %s: %s (%s)", fired.rule, fired.trigger, fired.why, fired.outcome)
        if fired.record is not None:
            with contextlib.suppress(CorewardError):  # it may be removed already
                self._announce(self._store.get(fired.record))

    def _count(self, counts: Counts) -> None:
        """Totals of a new recorder begin at zero."""
        before = self._counted
        if counts.samples < before.samples or counts.refused < before.refused:
            before = Counts(processes=0, bytes=0, samples=0, refused=0)
        self._counted = counts
        metrics = self._metrics
        metrics.watched.set(counts.processes)
        metrics.watched_bytes.set(counts.bytes)
        metrics.traced.set(counts.traced)
        metrics.samples.inc(counts.samples - before.samples)
        metrics.watch_refused.inc(counts.refused - before.refused)


def _end(channel: socket.socket) -> None:
    """Tell the recorder that nothing more will be asked: it finishes, and ends."""
    with contextlib.suppress(OSError):
        channel.shutdown(socket.SHUT_WR)
