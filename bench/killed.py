"""A thousand crashes in a storm, while the agent is killed and started again, over and over.

Each of the thousand has a name (pid and start time), so that it can be looked for afterwards. The
storm around them is only counted, as the storm's own program has used up its share soon. The agent
gets SIGKILL at random moments, also while it starts, and is started again at once, as a service
manager would; nobody puts the kernel's settings back between.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from bench.coreward import Coreward
from bench.fates import Absence, Death, Fates, figures_of
from bench.model import Figure, Say
from bench.peers import Peer, Unavailable, scratch
from bench.programs import ROOT, build
from bench.storm import LOOPS
from collector.elfcore.reader import CoreFile
from collector.errors import CoreFormatError
from tests.system.agents import COMMAND, RunningAgent, Stuck, agent
from tests.system.victims import PATIENCE

CRASHES = 1000
_PACE = 0.12  # seconds between two of them
_LIFE_S = 3.0  # of an agent that is ready, at most
_START_S = 0.5  # or of one that is not; the storm makes it take longer until it is
_AT_START = 4  # one agent of so many is killed while it starts
_PATIENCE_S = 180.0  # until all is on record
_LOOK_S = 2.0


class Run(NamedTuple):
    """What a run is made of; the same seed gives the same lengths of the agents' lives."""

    crashes: int = CRASHES
    seed: int | None = None  # None: another one each time


class _Life:
    """An agent that need not be waited for. `ready`: when it was, on the monotonic clock."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.ready: float | None = None
        self._is_settled = threading.Event()  # it is ready, or has ended
        self.last: deque[str] = deque(maxlen=20)  # lines
        self.process = subprocess.Popen(
            [*COMMAND, "run", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            text=True,
        )
        self._listener = threading.Thread(
            target=self._listen, args=(self.process.stdout,), daemon=True
        )
        self._listener.start()

    def _listen(self, output: IO[str]) -> None:
        with output:
            for line in output:
                if line.startswith("ready"):
                    self.ready = time.monotonic()
                    self._is_settled.set()
                self.last.append(line.rstrip("\n"))
        self._is_settled.set()

    def wait_ready(self) -> None:
        """Or until it has ended."""
        self._is_settled.wait(PATIENCE)

    def kill(self) -> float:
        """Returns when it was. Raises Stuck if it had ended by itself."""
        ended = self.process.poll() is not None
        killed = time.monotonic()  # before: this thread may not run for a while afterwards
        self.process.kill()
        self.process.wait()
        self._listener.join()
        if ended:
            raise Stuck("\n".join(["an agent has ended by itself:", *self.last]))
        return killed


def measure(peers: Sequence[Peer], run: Run, say: Say) -> list[Figure]:
    """The same under each of our hand-offs; those that cannot run are left out."""
    figures: list[Figure] = []
    for peer in peers:
        if isinstance(peer, Coreward):
            seed = random.randrange(1 << 32) if run.seed is None else run.seed
            say(f"{run.crashes} crashes, agents killed (--seed {seed}): {peer.name}")
            try:
                figures += figures_of(peer.name, seed, _one(peer.backend, run.crashes, seed))
            except Unavailable as error:
                say(f"{peer.name}: {error}")
    return figures


def _one(backend: str, crashes: int, seed: int) -> Fates:
    with scratch() as folder, contextlib.ExitStack() as stack:
        try:
            running = stack.enter_context(
                agent(folder, backend=backend, patience="250ms", core_pattern="core")
            )
        except Stuck as error:
            raise Unavailable(f"the agent does not start with this hand-off: {error}") from error
        with _crashing(folder, crashes) as (series, storm):
            kills, absences = _lives(running, random.Random(seed), series)
            said = storm.communicate()[0]
        deaths = [Death.of(line) for line in (folder / "series").read_text().splitlines()]
        stormed = int(said.split()[0])
        _wait_until_recorded(running, len(deaths) + stormed)
        status = running.stop()
        pattern = running.settings.read("core_pattern")
        running.doctor("--unpin")
        left = [f"core_pattern {pattern!r}"] if pattern != "core" else []
        left += [f"pins in {running.pins}"] if running.pins.exists() else []
        left += [f"exit status {status}"] if status else []
        return Fates(
            deaths=deaths,
            stormed=stormed,
            kills=kills,
            absences=absences,
            records=_records(running.store),
            cores=len(list(running.store.glob("crashes/*/core*"))),
            partial=list(_partial(running.store)),
            left=left,
        )


@contextlib.contextmanager
def _crashing(
    folder: Path, crashes: int
) -> Iterator[tuple[subprocess.Popen[bytes], subprocess.Popen[str]]]:
    """The series, which writes to the file `series`, and the storm around it."""
    seconds = str(max(1, round(crashes * _PACE)))
    limit = ["prlimit", "--core=unlimited"]
    with (
        (folder / "series").open("wb") as file,
        subprocess.Popen(
            [*limit, str(build("storm")), str(LOOPS), seconds],
            cwd=folder,
            stdout=subprocess.PIPE,
            text=True,
        ) as storm,
        subprocess.Popen(
            [*limit, str(build("series")), str(crashes), seconds], cwd=folder, stdout=file
        ) as series,
    ):
        yield series, storm


def _lives(
    running: RunningAgent, chance: random.Random, series: subprocess.Popen[bytes]
) -> tuple[int, list[Absence]]:
    """Kill agents until the series has ended, and start a last one; the number of kills."""
    _some_time(series, _LIFE_S * chance.random())
    gone = time.monotonic()
    running.process.kill()
    running.process.wait()
    kills, absences = 1, []
    while series.poll() is None:
        life = _Life(running.arguments)
        if chance.randrange(_AT_START):
            life.wait_ready()
            _some_time(series, _LIFE_S * chance.random())
        else:
            _some_time(series, _START_S * chance.random())
        killed = life.kill()
        kills += 1
        if life.ready is not None:
            absences.append(Absence(gone, life.ready))
            gone = killed
    running.restart()
    absences.append(Absence(gone, time.monotonic()))
    return kills, absences


def _some_time(series: subprocess.Popen[bytes], seconds: float) -> None:
    """Less if the series ends."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        series.wait(seconds)


def _records(store: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in store.glob("crashes/*/record.json")]


def _wait_until_recorded(running: RunningAgent, wanted: int) -> None:
    """Until all deaths are on record, and nothing more is learnt of any; or for some minutes."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        records = _records(running.store)
        if sum(r["count"] or 1 for r in records) >= wanted and all(r["reason"] for r in records):
            return
        time.sleep(_LOOK_S)  # there is nothing else to wait for: counts are told by no line


def _partial(store: Path) -> Iterator[str]:
    """What is neither a whole core nor gone."""
    for file in store.glob("crashes/**/.tmp-*"):
        yield str(file.relative_to(store))
    for core in store.glob("crashes/*/core*"):
        try:
            with CoreFile(core) as opened:
                if opened.truncated or not opened.threads:
                    yield f"{core.relative_to(store)}: cut off"
        except (CoreFormatError, OSError) as error:
            yield str(error)
