"""All sinks of the policy in force. Nothing of one is loaded before policy wants it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from collector.errors import CorewardError
from collector.model import Record
from collector.policy.types import OtlpSettings, SinkSettings
from collector.store.store import Store

if TYPE_CHECKING:
    from collector.sinks.journal import Journal
    from collector.sinks.otlp import Otlp

JOURNAL, OTLP = "journal", "otlp"


class Sinks:
    """Any thread may call its methods."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._journal: Journal | None = None
        self._otlp: Otlp | None = None
        self._otlp_settings: OtlpSettings | None = None
        self._sent = dict.fromkeys((JOURNAL, OTLP), 0)  # by those that are closed
        self._lost = dict.fromkeys((JOURNAL, OTLP), 0)

    @property
    def waiting(self) -> bool:
        """Whether `tend` has something to do."""
        return self._otlp is not None or (self._journal is not None and self._journal.waiting > 0)

    def configure(self, settings: SinkSettings) -> None:
        """These are to be told from now on."""
        with self._lock:
            if settings.journal and self._journal is None:
                from collector.sinks.journal import Journal  # noqa: PLC0415

                self._journal = Journal()
            elif not settings.journal:
                self._close_journal()
            if settings.otlp != self._otlp_settings:
                self._close_otlp(0.0)
                if settings.otlp is not None:
                    from collector.sinks.otlp import Otlp  # noqa: PLC0415

                    self._otlp = Otlp(settings.otlp, self._store.path)
                self._otlp_settings = settings.otlp

    def tell(self, record: Record, *, stored: bool) -> None:
        """Tell all of a death. Those that read it from the store are told when it is `stored`."""
        with self._lock:
            if self._journal is not None:
                from collector.sinks.journal_fields import fields  # noqa: PLC0415

                self._journal.put(fields(record, self._core(record)))
            if self._otlp is not None and stored:
                self._otlp.put(record.id)

    def stored(self, record: Record) -> None:
        """Its record is in the store at last."""
        with self._lock:
            if self._otlp is not None:
                self._otlp.put(record.id)

    def tend(self) -> None:
        """Try again what was not taken; now and then."""
        with self._lock:
            if self._journal is not None:
                self._journal.flush()
            if self._otlp is not None:
                self._otlp.tend()

    def close(self, patience: float) -> None:
        """The agent ends; what waits has so many seconds."""
        with self._lock:
            self._close_journal()
            self._close_otlp(patience)

    def sent(self) -> dict[str, int]:
        """Deaths that each sink has taken."""
        now = {JOURNAL: self._journal, OTLP: self._otlp}
        return {name: self._sent[name] + (sink.sent if sink else 0) for name, sink in now.items()}

    def lost(self) -> dict[str, int]:
        """Deaths that each sink has not been told of, and will not be."""
        now = {JOURNAL: self._journal, OTLP: self._otlp}
        return {name: self._lost[name] + (sink.lost if sink else 0) for name, sink in now.items()}

    # ---- inside, with the lock held

    def _core(self, record: Record) -> Path | None:
        try:
            return self._store.core_path(record)
        except (CorewardError, OSError):
            return None

    def _close_journal(self) -> None:
        if (journal := self._journal) is not None:
            journal.close()
            self._keep(JOURNAL, journal.sent, journal.lost)
            self._journal = None

    def _close_otlp(self, patience: float) -> None:
        if (otlp := self._otlp) is not None:
            otlp.close(patience)
            self._keep(OTLP, otlp.sent, otlp.lost)
            self._otlp = None

    def _keep(self, name: str, sent: int, lost: int) -> None:
        self._sent[name] += sent
        self._lost[name] += lost
