"""lend: a memory cgroup gets room for a dead process beside its successor, until it is written.

`release: {lend: true}`. The limit of each cgroup that is short of room is raised by the size of the
dead process. What was changed is on disk before: whoever comes next puts it back, be it this agent,
the next one, or `coreward doctor --restore`. Putting back never kills: on v2 a `memory.max` below
the usage would call the OOM killer, and v1 refuses it (EBUSY), so it waits until the usage fits. A
limit that somebody else has set meanwhile is theirs, and stays.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from collector.linux.atomic import atomic_file
from collector.linux.memory import CgroupLevel, number_in

log = logging.getLogger(__name__)

_RETRY_S = 0.25
_MARGIN = 1 << 20  # bytes of growth between a look at the usage and the new limit
_LIMITS = ("memory.max", "memory.high", "memory.limit_in_bytes")
_USAGE = {"memory.limit_in_bytes": "memory.usage_in_bytes"}  # else memory.current


class Loan(msgspec.Struct):
    """What one file of a limit said before us, what we have put there, and how much is lent."""

    original: int
    ours: list[int]
    sizes: list[int]


class Lender:
    """The account of what is lent. Thread-safe."""

    def __init__(self, state_dir: Path) -> None:
        self._file = state_dir / "lent.json"
        self._lock = threading.Lock()
        self._loans: dict[str, Loan] = {}
        self._returning: threading.Thread | None = None

    @property
    def lent(self) -> int:
        """Bytes by which limits are higher than they were."""
        with self._lock:
            return sum(sum(loan.ours[-1:]) - loan.original for loan in self._loans.values())

    def lend(self, levels: Iterable[CgroupLevel], size: int) -> list[str]:
        """Raise the limits of these cgroups by `size` bytes; the files that were changed.

        All of them or none. Raises OSError if that, or saving the state, is not possible.
        """
        changed: list[str] = []
        with self._lock:
            try:
                for level in levels:
                    for path in _limits_of(level):
                        self._raise(path, size)
                        changed.append(path)
            except OSError:
                self._take_back(changed, size)
                raise
        return changed

    def _raise(self, path: str, size: int) -> None:
        present = number_in(path)
        if present is None:  # it has none any more
            raise OSError(f"{path} has no number")
        loan = self._loans.get(path)
        if loan is None or present not in loan.ours:
            loan = self._loans[path] = Loan(present, [], [])
        loan.sizes.append(size)
        loan.ours.append(_rounded(loan.original + sum(loan.sizes)))
        try:
            self._save()
            Path(path).write_text(str(loan.ours[-1]))
        except OSError:
            loan.sizes.remove(size)
            raise

    def give_back(self, paths: Sequence[str], size: int) -> None:
        """A dead process is written: its part is put back as soon as the usage allows it."""
        with self._lock:
            self._take_back(paths, size)

    def _take_back(self, paths: Sequence[str], size: int) -> None:
        for path in paths:
            loan = self._loans.get(path)
            if loan is not None and size in loan.sizes:
                loan.sizes.remove(size)
        if paths and self._returning is None:
            self._returning = threading.Thread(target=self._return, name="lend", daemon=True)
            self._returning.start()

    def _return(self) -> None:
        """Try until all that is not lent any more is put back."""
        said: set[str] = set()
        while True:
            with self._lock:
                waiting = [path for path, loan in self._loans.items() if not _put_back(path, loan)]
                done = [path for path, loan in self._loans.items() if _is_done(path, loan)]
                for path in done:
                    del self._loans[path]
                if done:
                    self._save()
                if not waiting:
                    self._returning = None
                    return
            for path in waiting:
                if path not in said:
                    log.info("%s stays raised until the usage of its cgroup fits", path)
                    said.add(path)
            threading.Event().wait(_RETRY_S)

    def _save(self) -> None:
        with atomic_file(self._file) as fd:
            os.write(fd, msgspec.json.encode(self._loans))

    def restore(self) -> list[str]:
        """Put back what an agent that is gone has left raised, as far as the usage fits now.

        A sentence for each file, for people. What does not fit yet stays on record, and this goes
        on in a thread of its own for as long as we run. Raises OSError if the record is damaged.
        """
        with self._lock:
            try:
                found = msgspec.json.decode(self._file.read_bytes(), type=dict[str, Loan])
            except FileNotFoundError:
                return []
            except msgspec.DecodeError as error:
                raise OSError(f"{self._file} is damaged: {error}") from error
            for path, loan in found.items():
                loan.sizes = []
                self._loans.setdefault(path, loan)
            said = []
            for path in found:
                back = _put_back(path, self._loans[path])
                state = "as before" if back else "still raised: its usage is high"
                said.append(f"{path} is {state}")
                if back:
                    del self._loans[path]
            self._save()
            self._take_back(tuple(self._loans), 0)
        return said


def short_of(levels: Iterable[CgroupLevel], needed: dict[str, int]) -> list[CgroupLevel]:
    """The cgroups with less room than is needed in them, by their paths."""
    return [level for level in levels if needed[level.path] > level.headroom]


def _limits_of(level: CgroupLevel) -> list[str]:
    """The files that bound it; the one that must not be exceeded by others last to be lowered."""
    paths = (f"{level.path}/{name}" for name in _LIMITS)
    return [path for path in paths if (number_in(path) or 1 << 60) < 1 << 60]


def _put_back(path: str, loan: Loan) -> bool:
    """Set a limit to what is lent still. False: its usage is too high for that."""
    present, wanted = number_in(path), _rounded(loan.original + sum(loan.sizes))
    if present not in loan.ours or present == wanted:
        return True
    folder, _, name = path.rpartition("/")
    used = number_in(f"{folder}/{_USAGE.get(name, 'memory.current')}")
    if used is not None and used + _MARGIN > wanted:
        return False
    loan.ours.append(wanted)
    try:
        Path(path).write_text(str(wanted))
    except FileNotFoundError:  # the cgroup is gone
        return True
    except OSError:  # EBUSY: it grew meanwhile
        return False
    return True


def _is_done(path: str, loan: Loan) -> bool:
    return not loan.sizes and number_in(path) in (None, loan.original, *_not_ours(path, loan))


def _not_ours(path: str, loan: Loan) -> list[int | None]:
    present = number_in(path)
    return [] if present in loan.ours else [present]


def _rounded(size: int) -> int:
    return size & -4096  # as the kernel does
