"""The agent's side of plugins: a worker for each that the policy names, kept running.

A worker is a dumper at the other end of a socket pair. One that ends is started again after a
while; one whose time was over, or that did not bid, is killed first. A reload of the policy
dismisses those that it does not name any more, which may finish what they have.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec

from collector.dumpers.hub import Hub
from collector.linux import children
from collector.linux.peer import Peer
from collector.policy.types import DumperRule

log = logging.getLogger(__name__)

RUN_DIR = "COREWARD_RUN_DIR"
_RESTART_S = (1.0, 60.0)  # after the first failure, and at most
_END_S = 2.0  # that a worker has to end when its connection was closed


class _Worker:
    """One plugin: its process, if it runs, and when it is to be started."""

    def __init__(self, rule: DumperRule) -> None:
        self.rule = rule
        self.process: subprocess.Popen[bytes] | None = None
        self.failures = 0
        self.start_at = 0.0  # of time.monotonic()
        self.is_wanted = True
        self.started = 0.0

    def failed(self) -> float:
        """It has ended. Seconds until it is started again."""
        least, most = _RESTART_S
        ran = time.monotonic() - self.started
        self.failures = 0 if ran > most else self.failures + 1
        pause = min(most, least * 2 ** (self.failures - 1)) if self.failures else least
        self.start_at = time.monotonic() + pause
        return pause


class Plugins:
    """Thread-safe. A thread of its own starts and reaps workers, while there are rules."""

    def __init__(self, hub: Hub, run_dir: Path) -> None:
        """run_dir: of the agent; its workers have it in their environment, as RUN_DIR."""
        self._hub, self._run_dir = hub, run_dir
        self._lock = threading.Condition()
        self._workers: list[_Worker] = []
        self._thread: threading.Thread | None = None
        self._closing = False

    def configure(self, rules: tuple[DumperRule, ...]) -> None:
        """From now on these plugins, and no others. One whose rule is the same goes on as it is."""
        with self._lock:
            kept = [worker for worker in self._workers if worker.is_wanted]
            for worker in kept:
                if worker.rule not in rules:
                    worker.is_wanted = False
                    if worker.rule.name in self._hub.names():
                        self._hub.dismiss(worker.rule.name)
                    elif worker.process is not None:  # it is still starting
                        worker.process.kill()
            known = [worker.rule for worker in kept]
            self._workers += [_Worker(rule) for rule in rules if rule not in known]
            if self._workers and self._thread is None:
                self._thread = threading.Thread(target=self._run, name="plugins", daemon=True)
                self._thread.start()
            self._lock.notify_all()

    def close(self) -> None:
        """End all workers; the hub was closed before, and waited for what they had."""
        with self._lock:
            self._closing = True
            self._lock.notify_all()
        if self._thread is not None:
            self._thread.join()

    # ---- the thread

    def _run(self) -> None:
        while True:
            with self._lock:
                if self._closing:
                    workers, self._workers = self._workers, []
                    break
                workers = list(self._workers)
                names = {w.rule.name for w in workers if w.process is not None}
            for worker in workers:
                if worker.process is None:
                    self._start_if_due(worker, names)
            with self._lock:
                self._workers = [w for w in self._workers if w.is_wanted or w.process is not None]
                due = [w.start_at for w in self._workers if w.process is None]
                pause = max(0.01, min(due) - time.monotonic()) if due else None
                if not self._closing:
                    self._lock.wait(pause)
        for worker in workers:
            process = worker.process  # whoever reaps it takes it away from there
            if process is not None:
                children.has_ended(process.pid, _END_S)
                children.kill(process)

    def _start_if_due(self, worker: _Worker, running: set[str]) -> None:
        # one of the same name that was dismissed may still be at work
        due = worker.is_wanted and worker.start_at <= time.monotonic()
        if not due or worker.rule.name in running:
            return
        try:
            self._start(worker)
        except OSError as error:
            pause = worker.failed()
            log.error(
                "dumper %s cannot be started: %s; again in %g s",
                *(worker.rule.name, error.strerror, pause),
            )

    def _start(self, worker: _Worker) -> None:
        rule = worker.rule
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                # with SO_PASSCRED before it speaks, the kernel says that it is the worker who does
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
                process = children.start(
                    [
                        *(sys.executable, "-P", "-s", "-m", "collector.dumpers.worker"),
                        *(str(theirs.fileno()), msgspec.json.encode(rule).decode()),
                    ],
                    0,
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env={**os.environ, RUN_DIR: str(self._run_dir)},
                )
            except OSError:
                ours.close()
                raise
        worker.process, worker.started = process, time.monotonic()
        uid = os.geteuid() if rule.user is None else rule.user
        peer = Peer(process.pid, uid, os.getegid())
        taken = self._hub.take(
            ours,
            peer,
            os.pidfd_open(process.pid),
            most_s=rule.timeout,
            gone=lambda why: self._gone(worker, why),
        )
        if not taken:
            self._gone(worker, "there are too many dumpers")

    def _gone(self, worker: _Worker, why: str) -> None:
        """Its connection was closed. In the hub's thread, which does not wait."""
        threading.Thread(target=self._reap, args=(worker, why), daemon=True).start()

    def _reap(self, worker: _Worker, why: str) -> None:
        process = worker.process
        if process is None:
            return
        if not children.has_ended(process.pid, _END_S):
            log.warning("dumper %s does not end: it is killed", worker.rule.name)
        children.kill(process)
        with self._lock:
            worker.process = None
            if worker.is_wanted and not self._closing:
                pause = worker.failed()
                log.error("dumper %s: %s; started again in %g s", worker.rule.name, why, pause)
            self._lock.notify_all()
