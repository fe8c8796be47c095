"""A real agent for one test: scratch store, own run directory and BPF pins, settings put back.

    with agent(tmp_path, backend="socket") as running:
        ...let something die...
        record = running.record(pid)      # waits for its line, then asks `coreward info --json`

Holds the machine-wide settings lock for as long as it runs, unless it takes no hand-offs
(backend="none") and needs no settings.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any

from collector.export.metrics import KEPT_S
from tests.system import sanitized
from tests.system.scratch import NAME
from tests.system.settings import KernelSettings, kernel_settings
from tests.system.victims import PATIENCE, ROOT

COMMAND = [sys.executable, "-m", "collector"]
Launch = Callable[..., "subprocess.Popen[str]"]  # as subprocess.Popen


class Stuck(AssertionError):
    """The agent did not do in time what it was waited for."""


class NotReady(Stuck):
    """The agent ended, or did not say that it is ready. `lines`: all that it said."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(["the agent is not ready, but said:", *lines]))
        self.lines = lines


class RunningAgent:
    """`lines` are what it has said so far: one per death on its standard output, and its log."""

    def __init__(
        self,
        arguments: list[str],
        store: Path,
        settings: KernelSettings,
        port: int,
        launch: Launch | None = None,
    ) -> None:
        self._launch: Launch = launch or subprocess.Popen
        self.store = store
        self.port = port  # of its metrics; 0: it serves none
        self.settings = settings
        self.arguments = arguments
        self.lines: list[str] = []
        self._waited = 0  # lines that were waited for, or passed over
        self._said = threading.Condition()
        self._start()

    def _start(self) -> None:
        self.process = self._launch(
            [*COMMAND, "run", *self.arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            text=True,
            env=sanitized.environment(),
            # as a service has one: its lowest priority is below that of its own, not of all others
            start_new_session=True,
        )
        self._listener = threading.Thread(
            target=self._listen, args=(self.process.stdout,), daemon=True
        )
        self._listener.start()
        try:
            self.wait_line(r"^ready")
        except Stuck as error:
            self.process.kill()
            self.process.wait()
            raise NotReady(self.lines) from error

    def _listen(self, output: IO[str]) -> None:
        """Take in every line at once: an agent must never wait for its reader."""
        with output:
            for line in output:
                with self._said:
                    self.lines.append(line.rstrip("\n"))
                    self._said.notify_all()

    def restart(self) -> None:
        """Start it again after it was stopped or killed; its store and pins are as they were."""
        self.process.wait(PATIENCE)
        self._listener.join(PATIENCE)
        self._start()

    def wait_line(self, wanted: str, timeout: float = PATIENCE) -> str:
        """The next line that the pattern is found in; earlier ones are passed over."""
        end = time.monotonic() + timeout
        with self._said:
            while True:
                while self._waited < len(self.lines):
                    line = self.lines[self._waited]
                    self._waited += 1
                    if re.search(wanted, line):
                        return line
                if not self._listener.is_alive() or time.monotonic() > end:
                    raise Stuck(f"no line like {wanted!r} among {self.lines[-20:]}")
                self._said.wait(0.5)

    def record(self, pid: int) -> dict[str, Any]:
        """The finished record of a process that died; waits for its line."""
        return self.info(self.wait_record(pid))

    def wait_record(self, pid: int) -> str:
        """Wait for the line of a process that died; the id of its record."""
        wanted = rf"^\S+ [0-9a-f]{{16}} pid {pid} "
        with self._said:
            line = next((known for known in self.lines if re.search(wanted, known)), None)
        return (line or self.wait_line(wanted)).split()[1]

    def info(self, identity: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.command("info", identity, "--json"))
        return found

    def listed(self, *arguments: str) -> list[dict[str, Any]]:
        """The deaths that `coreward list` shows, the newest first."""
        found: list[dict[str, Any]] = json.loads(self.command("list", "--json", *arguments))
        return found

    def metric(self, sample: str) -> float:
        """The present value of `name{label="value"}`; 0 if nothing was counted under it."""
        return scrape(self.port).get(sample, 0.0)

    def accounts(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Metrics and records of the same moment: others may be dying on this machine, too."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            before, records, after = scrape(self.port), self.listed(), scrape(self.port)
            closed = all(record["reason"] for record in records)
            if closed and deaths_of(before) == deaths_of(after):
                return after, records
        raise Stuck("deaths do not cease")

    def attempt(self, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Another verb on the same store, and how it ended."""
        return subprocess.run(
            [*COMMAND, verb, "--store", str(self.store), *arguments],
            capture_output=True,
            check=False,
            cwd=ROOT,
            timeout=PATIENCE,
            encoding="utf-8",
        )

    def command(self, verb: str, *arguments: str) -> str:
        """Standard output of another verb on the same store, which must succeed."""
        done = self.attempt(verb, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def snapshot(self, pid: int, *arguments: str) -> dict[str, Any]:
        """The record of a snapshot that is taken now."""
        found: dict[str, Any] = json.loads(self.command("snapshot", str(pid), "--json", *arguments))
        return found

    @property
    def run_dir(self) -> Path:
        return Path(self.arguments[self.arguments.index("--run-dir") + 1])

    @property
    def pins(self) -> Path:
        return Path(self.arguments[self.arguments.index("--pin-dir") + 1])

    def doctor(self, *arguments: str) -> str:
        """What `coreward doctor` says of this agent's places."""
        places = ("--run-dir", str(self.run_dir), "--pin-dir", str(self.pins))
        return self.command("doctor", *places, *arguments)

    def core(self, record: dict[str, Any], to: Path) -> Path:
        """The plain ELF core of a record, written by `coreward core`."""
        self.command("core", record["id"], "-o", str(to))
        return to

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Its exit status, when it has said all."""
        self.process.send_signal(number)
        status = self.process.wait(PATIENCE)
        self._listener.join(PATIENCE)
        return status


def functions(record: dict[str, Any]) -> list[str | None]:
    """Of the program itself, innermost first; without the C library and the start-up code."""
    frames = [f for f in record["frames"] or [] if f["module"] == record["exe"]]
    return [f["function"] for f in frames if f["function"] != "_start"]


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def with_routine(config: str) -> str:
    """The policy, with a record for ends that were no crashes as well."""
    if "routine:" in config:
        return config
    given = re.search(r"^defaults: *(\{|\n +)", config, re.MULTILINE)
    if given is None:
        return f"defaults: {{routine: record}}\n{config}"
    key = "routine: record" + (", " if given[1] == "{" else given[1])
    return config[: given.end()] + key + config[given.end() :]


def scrape(port: int) -> dict[str, float]:
    """Sample (`name{labels}`) -> value of the metrics that an agent serves, not older than this."""
    time.sleep(KEPT_S)  # what it gave to somebody may be given again
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE) as answer:
        lines = answer.read().decode().splitlines()
    samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {sample: float(value) for sample, _, value in samples}


def deaths_of(samples: dict[str, float]) -> dict[str, float]:
    """Those of the samples that have counted deaths."""
    return {
        name: n for name, n in samples.items() if name.startswith("coreward_deaths_total") and n
    }


@contextlib.contextmanager
def agent(
    folder: Path,
    *,
    config: str = "",
    backend: str = "auto",
    loader: str = "auto",
    extra: tuple[str, ...] = (),
    metrics: bool = False,
    takeover: bool | str = False,
    patience: str = "10s",
    hold: str = "",
    launch: Launch | None = None,
    routine: bool = False,
    **settings: str,
) -> Iterator[RunningAgent]:
    """An agent that is ready. `config` is YAML; its `hold` is filled in from `backend`.

    metrics: serve them, on `running.port`. takeover: `hold.takeover`. patience:
    `hold.patience`; on a busy machine nothing may be decided in the usual quarter of a second.

    hold: more of its keys, as `max: 1s`. launch: what starts it, a service manager say. routine:
    ends that were no crashes are only noted, as is usual; else they are on record, for tests end
    their victims.
    settings: of the kernel, before the agent starts, as `kernel_settings` takes them.
    """
    file = folder / "coreward.yaml"
    port = free_port() if metrics else 0
    listen = f'"127.0.0.1:{port}"' if port else "off"
    takes = f"backend: {backend}, takeover: {str(takeover).lower()}, patience: {patience}"
    config = config if routine else with_routine(config)
    if not re.search(r"^capture:", config, re.MULTILINE):
        config += "\ncapture: {explain_time: 10m}"  # likewise
    file.write_text(f"hold: {{{takes}, {hold}}}\nmetrics: {{listen: {listen}}}\n{config}")
    pins = Path("/sys/fs/bpf") / NAME
    arguments = [
        *("--config", str(file), "--store", str(folder / "store")),
        *("--run-dir", str(folder / "run"), "--pin-dir", str(pins), "--bpf", loader),
        *extra,
    ]
    changes = backend != "none" or settings
    with kernel_settings(**settings) if changes else nullcontext(KernelSettings()) as kernel:
        running: RunningAgent | None = None
        try:
            running = RunningAgent(arguments, folder / "store", kernel, port, launch)
            yield running
        finally:
            if running is not None and running.process.poll() is None:
                try:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        running.stop()
                finally:  # also when the test is interrupted
                    running.process.kill()
                    running.process.wait()
            if pins.exists():
                shutil.rmtree(pins)
