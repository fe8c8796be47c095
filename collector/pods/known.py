"""The pods of this node as far as they are known: names are read when containers begin.

A thread of its own does all the reading, so that nobody waits for a file system longer than he
says: inotify(7) tells it of each container that a runtime makes, it reads what the runtime has
written there some milliseconds later, and keeps that. A container that is gone when its death is
looked at has its names from here. What is not known yet may be asked for; its files are read then.

What is kept is bounded in bytes; the container that was asked for, or began, longest ago goes
first.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import select
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

from collector.circumstances import Pod, PodSource
from collector.linux import inotify
from collector.linux.inotify import Inotify
from collector.pods.cgroup import InPod, in_pod
from collector.pods.files import FOLDERS, PodFiles

log = logging.getLogger(__name__)

PATIENCE_S = 0.2  # that somebody waits for names, usually a tenth of a millisecond
_TRIES_S = (0.05, 0.25, 1.0, 4.0)  # after its folder was made: its files come a little later
_MOST_BYTES = 512 << 10  # of all that is kept
_EACH_BYTES = 1024  # of one beside its texts
_PAIR_BYTES = 32  # of a label or an annotation beside its texts
_MOST_WAITING = 1024  # that have begun, or were asked for
_LOOK_AGAIN_S = 10.0  # for what was not there
_SELDOM_S = 60.0  # the same of runtimes, where there is one
_ID = re.compile("[0-9a-f]{64}")


class _Asked:
    """A question that somebody waits with."""

    def __init__(self, one: InPod) -> None:
        self.one = one
        self.pod: Pod | None = None
        self.answered = threading.Event()


class Pods:
    """Thread-safe. Its thread begins with `start`, or with the first process of a pod that dies."""

    def __init__(self, root: Path = Path("/"), most_bytes: int = _MOST_BYTES) -> None:
        self._files = PodFiles(root)
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Pod] = OrderedDict()  # by container id, or uid of the pod
        self._bytes, self._most_bytes = 0, most_bytes
        self._missed: OrderedDict[InPod, float] = OrderedDict()  # until when it is not looked for
        self._begun: OrderedDict[str, tuple[float, int]] = OrderedDict()  # id -> when, which try
        self._asked: list[_Asked] = []
        self._watched: dict[int, str] = {}
        self._unwatched: set[str] = set()  # folders that are there, and of which nothing is told
        self._watch_at = 0.0
        self._wake: int | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def start(self) -> None:
        """Learn of containers from now on; again does nothing."""
        with self._lock:
            if self._thread is not None or self._closed:
                return
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._thread = threading.Thread(target=self._run, name="pods", daemon=True)
            self._thread.start()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._stir()

    def known(self, cgroup: str | None) -> Pod | None:
        """The pod of a process in this cgroup, without a look at any file; None: it is in none."""
        one = None if cgroup is None else in_pod(cgroup)
        return None if one is None else self._known(one) or _bare(one)

    def find(self, cgroup: str | None, patience_s: float | None = None) -> Pod | None:
        """The same, but its names are looked for as well; not for a process that waits."""
        one = None if cgroup is None else in_pod(cgroup)
        if one is None:
            return None
        found = self._known(one)
        if found is not None or one.nested:
            return found or _bare(one)
        self.start()
        asked = _Asked(one)
        with self._lock:
            at_once = self._missed.get(one, 0.0) <= time.monotonic()
            if self._closed or not at_once or len(self._asked) >= _MOST_WAITING:
                return _bare(one)
            self._asked.append(asked)
            self._stir()
        asked.answered.wait(PATIENCE_S if patience_s is None else patience_s)
        return asked.pod or _bare(one)

    def _known(self, one: InPod) -> Pod | None:
        key = one.container_id or one.uid
        with self._lock:
            pod = self._kept.get(key)
            if one.nested or pod is None or pod.uid != one.uid:
                return None
            self._kept.move_to_end(key)
            return pod

    def _stir(self) -> None:
        """With the lock held."""
        if self._wake is not None:
            os.eventfd_write(self._wake, 1)

    # ---- the thread

    def _run(self) -> None:
        assert self._wake is not None
        try:
            with _inotify() as notify, contextlib.closing(select.epoll()) as ready:
                if notify is not None:
                    ready.register(notify, select.EPOLLIN)
                ready.register(self._wake, select.EPOLLIN)
                while not self._closed:
                    if notify is not None:
                        self._watch(notify)
                    self._answer()
                    self._read_begun()
                    ready.poll(self._timeout_s(watches=notify is not None))
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(self._wake)
                    if notify is not None:
                        self._take(notify)
        except Exception:
            log.exception("pods: names of containers are not read any more")
            self._closed = True
        finally:
            with self._lock:
                wake, self._wake = self._wake, None
            os.close(wake)

    def _timeout_s(self, *, watches: bool) -> float | None:
        with self._lock:
            if self._asked:
                return 0
            times = [at for at, _ in self._begun.values()]
        if watches:  # after a boot we may be there before the runtime is, or after another one
            times.append(self._watch_at + (_SELDOM_S if self._watched else 0))
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _watch(self, notify: Inotify) -> None:
        """Have new containers told, also of runtimes that have come later; read those that are
        there."""
        now = time.monotonic()
        if now < self._watch_at:
            return
        self._watch_at = now + _LOOK_AGAIN_S
        for folder in FOLDERS:
            if folder in self._watched.values():
                continue
            try:
                fd = self._files.open(folder)
            except OSError:
                continue
            try:
                number = notify.watch(f"/proc/self/fd/{fd}")
                if number in self._watched:  # another one's, by a link
                    continue
                self._watched[number] = folder
                with os.scandir(fd) as entries:
                    for entry in entries:
                        self._begins(entry.name, now)
                self._unwatched.discard(folder)
            except OSError as error:
                if folder not in self._unwatched:
                    log.warning("pods: %s cannot be watched: %s", folder, error.strerror)
                self._unwatched.add(folder)
            finally:
                os.close(fd)

    def _begins(self, name: str, at: float) -> None:
        """A container has begun, or was there before; its files are read at that time."""
        if not _ID.fullmatch(name):
            return
        with self._lock:
            self._begun[name] = (at, 0)
            if len(self._begun) > _MOST_WAITING:
                self._begun.popitem(last=False)

    def _take(self, notify: Inotify) -> None:
        for told in notify.read():
            if told.mask & inotify.IGNORED:  # the folder is gone: its runtime may make another one
                self._watched.pop(told.watch, None)
            elif told.mask & inotify.OVERFLOW:  # too many: what is missing is found when it dies
                log.info("pods: containers begin faster than they are told")
            else:
                self._begins(told.name, time.monotonic() + _TRIES_S[0])

    def _read_begun(self) -> None:
        """Those whose time has come; what says nothing yet is tried again."""
        now = time.monotonic()
        with self._lock:
            due = [(id, tries) for id, (at, tries) in self._begun.items() if at <= now]
        for id, tries in due:
            pod = self._files.of_container(id)
            with self._lock:
                self._begun.pop(id, None)
                if pod is not None:
                    self._keep(id, pod)
                elif tries + 1 < len(_TRIES_S):
                    self._begun[id] = (now + _TRIES_S[tries + 1], tries + 1)
            if self._asked:
                self._answer()  # somebody waits

    def _answer(self) -> None:
        while True:
            with self._lock:
                if not self._asked:
                    return
                asked = self._asked.pop(0)
            pod = self._known(asked.one) or self._files.read(asked.one)
            with self._lock:
                if pod.source is PodSource.CGROUP:
                    self._missed[asked.one] = time.monotonic() + _LOOK_AGAIN_S
                    if len(self._missed) > _MOST_WAITING:
                        self._missed.popitem(last=False)
                else:
                    self._keep(asked.one.container_id or asked.one.uid, pod)
            asked.pod = pod
            asked.answered.set()

    def _keep(self, key: str, pod: Pod) -> None:
        """With the lock held."""
        if key in self._kept:
            self._bytes -= _size(self._kept.pop(key))
        self._kept[key] = pod
        self._bytes += _size(pod)
        while self._bytes > self._most_bytes:
            self._bytes -= _size(self._kept.popitem(last=False)[1])


@contextlib.contextmanager
def _inotify() -> Iterator[Inotify | None]:
    """None: a user has so many of them only. Names are read for those that ask then."""
    with contextlib.ExitStack() as ends:
        try:
            notify = ends.enter_context(Inotify())
        except OSError as error:
            log.warning("pods: new containers are not told: inotify(7): %s", error.strerror)
            notify = None
        yield notify


def _bare(one: InPod) -> Pod:
    return Pod(uid=one.uid, container_id=one.container_id, source=PodSource.CGROUP)


def _size(pod: Pod) -> int:
    """As it lies in memory, where a character takes up to four bytes."""
    texts = (pod.uid, pod.name, pod.namespace, pod.container, pod.container_id, pod.image)
    pairs = (*pod.labels.items(), *pod.annotations.items())
    return (
        _EACH_BYTES
        + sum(sys.getsizeof(text) for text in texts if text is not None)
        + sum(sys.getsizeof(k) + sys.getsizeof(v) + _PAIR_BYTES for k, v in pairs)
    )
