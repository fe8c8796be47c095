"""The command line, called within this process: where Python starts slowly, each start counts."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import NamedTuple
from unittest import mock

import collector.cli.sample
import collector.cli.snapshot
from collector.cli import main
from collector.errors import ProbeError
from collector.probe.live import LiveProbe, open_live


class Done(NamedTuple):
    """How a verb ended."""

    status: int
    out: str
    err: str

    @property
    def why(self) -> str:
        """Its one line of error, without the command's name."""
        return self.err.strip().removeprefix("coreward: ")


def verb(*words: object) -> Done:
    """Run `coreward WORDS...`."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(word) for word in words])
    return Done(status, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def live_loader(loader: str) -> Iterator[None]:
    """Verbs for live processes load BPF by this loader alone, or not at all ("none")."""

    def opened() -> LiveProbe:
        if loader == "none":
            raise ProbeError("--bpf none")
        return open_live(loader)

    with (
        mock.patch.object(collector.cli.snapshot, "open_live", opened),
        mock.patch.object(collector.cli.sample, "open_live", opened),
    ):
        yield
