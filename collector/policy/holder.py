"""The policy in force, and how it is replaced while the agent runs.

A file that is wrong never takes the place of one that was right: the old policy stays and the
error is kept for the log and a metric. Settings that only a restart can apply keep their old
values in `policy` and are named in `needs_restart`, so that `policy` is what really happens.
"""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from collector.errors import PolicyError
from collector.policy.types import Policy


class PolicyHolder:
    """The policy of one file; None: the built-in one, which `reload` leaves as it is.

    Reading `policy` is safe in any thread; `reload` is for one thread at a time.
    Raises PolicyError if the file is wrong at the start, when there is nothing to fall back to.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.policy = _load(path)
        self.error: PolicyError | None = None  # of the last reload
        self.needs_restart: tuple[str, ...] = ()  # keys that the file changes and we could not

    def reload(self) -> bool:
        """Take the file's policy. False: it is wrong, `error` says why, the old one stays."""
        try:
            new = _load(self.path)
        except PolicyError as error:
            self.error = error
            return False
        self.error = None
        self.needs_restart = _fixed_changes(self.policy, new)
        self.policy = replace(
            new,
            store=replace(new.store, path=self.policy.store.path),
            metrics_listen=self.policy.metrics_listen,
            hold=self.policy.hold,
            capture=self.policy.capture,
            health=self.policy.health,
            kubernetes=replace(new.kubernetes, root=self.policy.kubernetes.root),
        )
        return True


def _load(path: Path | None) -> Policy:
    if path is None:
        return Policy()
    # PyYAML is a few MB: not before there is a file to read
    from collector.policy.load import load  # noqa: PLC0415

    return load(path)


def _fixed_changes(old: Policy, new: Policy) -> tuple[str, ...]:
    """The keys that differ and that are only read when the agent starts."""
    pairs = {
        "store.path": (old.store.path, new.store.path),
        "metrics.listen": (old.metrics_listen, new.metrics_listen),
        "hold.backend": (old.hold.backend, new.hold.backend),
        "hold.takeover": (old.hold.takeover, new.hold.takeover),
        "hold.patience": (old.hold.patience, new.hold.patience),
        "hold.bids": (old.hold.bids, new.hold.bids),
        "hold.max": (old.hold.max, new.hold.max),
        "hold.group": (old.hold.group, new.hold.group),
        "health.socket": (old.health.socket, new.health.socket),
        "health.group": (old.health.group, new.health.group),
        "kubernetes.root": (old.kubernetes.root, new.kubernetes.root),
        "capture.workers": (old.capture.workers, new.capture.workers),
        "capture.queue": (old.capture.queue, new.capture.queue),
    }
    return tuple(key for key, (before, after) in pairs.items() if before != after)
