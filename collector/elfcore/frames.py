"""Decompressed frames, kept in bounded memory, and loaded ahead of who reads in order.

One `FrameCache` serves any number of files and threads: a frame that several threads want at once
is decompressed by one of them. What a frame is, and how it is loaded, is the caller's business.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from collector.elfcore.zeros import ZEROS

Load = Callable[[], bytes]
_Key = tuple[Hashable, int]  # owner and number of the frame


class FrameCache:
    """At most `most` bytes of frames (or one, if that is larger); the least recently used goes.

    ahead: threads that load frames before they are asked for; 0: none does. ZEROS itself costs
    nothing.
    """

    def __init__(self, most: int, ahead: int = 0) -> None:
        self._most, self._ahead = most, ahead
        self._lock = threading.Lock()
        self._frames: OrderedDict[_Key, bytes] = OrderedDict()
        self._loading: dict[_Key, Future[bytes]] = {}
        self._pool: ThreadPoolExecutor | None = None
        self.bytes = 0  # that are kept

    def get(self, owner: Hashable, number: int, load: Load) -> bytes:
        """The frame; raises what `load` raises, which then is tried again the next time."""
        key = owner, number
        with self._lock:
            kept = self._frames.get(key)
            if kept is not None:
                self._frames.move_to_end(key)
                return kept
            loading = self._loading.get(key)
            if loading is None:
                mine = self._loading[key] = Future()
        if loading is not None:
            return loading.result()
        self._load(key, mine, load)
        return mine.result()

    def load_ahead(self, owner: Hashable, number: int, load: Load) -> None:
        """Load the frame in a thread, unless as many are on their way as there are threads."""
        key = owner, number
        with self._lock:
            if key in self._frames or key in self._loading or len(self._loading) >= self._ahead:
                return
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._ahead, "core-frames")
            future = self._loading[key] = Future()
            self._pool.submit(self._load, key, future, load)

    def forget(self, owner: Hashable) -> None:
        """Keep nothing of this owner; when it returns, none of its frames is being loaded."""
        with self._lock:
            loading = [future for key, future in self._loading.items() if key[0] is owner]
        wait(loading)
        with self._lock:
            for key in [key for key in self._frames if key[0] is owner]:
                self._drop(key)

    def close(self) -> None:
        """End the threads. No frame may be asked for any more."""
        if self._pool is not None:
            self._pool.shutdown()

    def _load(self, key: _Key, future: Future[bytes], load: Load) -> None:
        try:
            data = load()
        except BaseException as error:
            with self._lock:
                del self._loading[key]
            future.set_exception(error)
            return
        with self._lock:
            del self._loading[key]
            self._frames[key] = data
            self.bytes += _cost(data)
            while self.bytes > self._most and len(self._frames) > 1:
                self._drop(next(iter(self._frames)))
        future.set_result(data)

    def _drop(self, key: _Key) -> None:
        self.bytes -= _cost(self._frames.pop(key))


def _cost(data: bytes) -> int:
    return 0 if data is ZEROS else len(data)
