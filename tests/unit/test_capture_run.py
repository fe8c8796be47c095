"""The agent's side of a writer: it is bounded, whatever the writer does."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator

import pytest

from collector.capture import run
from collector.capture.job import MAX_EXPLAIN_CORE, Evidence, Explainable, Failed, Job, Written
from collector.capture.process import ProcText
from collector.capture.run import run_writer
from collector.linux import children
from collector.model import Capture
from collector.policy.types import Compress, MemoryChoice

TEXT = ProcText(
    stat=b"", status=b"", cmdline=b"", auxv=b"", cgroup=b"", coredump_filter=b"", maps=None
)
WRITTEN = '{"type":"written","capture":"threads","name":"core"}'
EXPLAINABLE = '{"type":"explainable","threads":1,"thread_name":null,"told":null}'


def job(max_time: float = 60.0) -> Job:
    return Job(
        record_id="0" * 16,
        folder="/nowhere",
        evidence=Evidence(
            pid=1,
            tid=1,
            signal=11,
            siginfo=b"",
            text=TEXT,
            threads=None,
            mappings=None,
            head=None,
        ),
        patches=[],
        mem_fd=-1,
        pagemap_fd=-1,
        shared_fds={},
        capture=Capture.FULL,
        memory=MemoryChoice(),
        compress=Compress(),
        max_bytes=None,
        max_read=None,
        max_time=max_time,
        min_free=0,
        explain=True,
        urgent=True,
    )


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[Job]]]:
    """Have shell scripts run for one writer after the other; the jobs that they were given."""
    started: list[subprocess.Popen[bytes]] = []

    def use(*scripts: str) -> list[Job]:
        jobs: list[Job] = []

        def start(job: Job, _: int) -> subprocess.Popen[bytes]:
            jobs.append(job)
            script = scripts[len(jobs) - 1]
            pipe = subprocess.PIPE
            started.append(subprocess.Popen(["sh", "-c", script], stdin=pipe, stdout=pipe))
            return started[-1]

        monkeypatch.setattr(run, "_start", start)
        return jobs

    yield use
    assert all(writer.returncode is not None for writer in started)
    assert children.hanging() == 0


def test_answers_come_through(writers: Callable[..., list[Job]]) -> None:
    writers(f"echo '{WRITTEN}'")
    assert list(run_writer(job())) == [Written(capture=Capture.THREADS, name="core")]


def test_the_small_core_is_memory_that_nobody_changes_any_more(
    writers: Callable[..., list[Job]],
) -> None:
    # GIVEN a writer that says that it has written it
    jobs = writers(f"""echo '{EXPLAINABLE}'; echo '{WRITTEN}'""")
    answers = run_writer(job())
    small = next(answers)
    # THEN it came with the job, in a file that is nowhere, with a bound
    assert isinstance(small, Explainable) and small.core == jobs[0].explain_fd
    assert os.readlink(f"/proc/self/fd/{small.core}").startswith("/memfd:coreward-explain")
    assert os.fstat(small.core).st_size == MAX_EXPLAIN_CORE
    with pytest.raises(PermissionError):
        os.pwrite(small.core, b"x", 0)
    assert list(answers) == [Written(capture=Capture.THREADS, name="core")]


def test_a_writer_that_lingers_after_its_last_answer_is_not_waited_for(
    writers: Callable[..., list[Job]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_GRACE", 0.05)
    # the pipe stays open, as where a thread of it hangs in the kernel
    writers(f"echo '{WRITTEN}'; exec sleep infinity")
    assert list(run_writer(job())) == [Written(capture=Capture.THREADS, name="core")]


def test_a_writer_without_an_answer_is_told(writers: Callable[..., list[Job]]) -> None:
    writers("exit 3")
    (answer,) = run_writer(job())
    assert answer == Failed("the writer ended with status 3 and no answer")


def test_nonsense_is_told(
    writers: Callable[..., list[Job]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_GRACE", 0.05)
    writers("echo nonsense; exec sleep infinity")
    (answer,) = run_writer(job())
    assert isinstance(answer, Failed) and "cannot be read" in answer.why


def test_out_of_time_there_is_a_core_without_memory(
    writers: Callable[..., list[Job]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a writer that hangs WHEN its time is over
    monkeypatch.setattr(run, "_GRACE", 0.05)
    monkeypatch.setattr(run, "_LAST_TIME", 60.0)
    jobs = writers("exec sleep infinity", f"echo '{WRITTEN}'")
    (answer,) = run_writer(job(max_time=0.05))
    # THEN another one is asked for threads alone, and the reason is on record
    assert [(j.capture, j.explain) for j in jobs] == [
        (Capture.FULL, True),
        (Capture.THREADS, False),
    ]
    assert isinstance(answer, Written)
    assert answer.lost["memory"] == "its memory could not be read within 0.05 seconds"


def test_out_of_time_twice_is_a_failure(
    writers: Callable[..., list[Job]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_GRACE", 0.05)
    monkeypatch.setattr(run, "_LAST_TIME", 0.05)
    writers("exec sleep infinity", "exec sleep infinity")
    (answer,) = run_writer(job(max_time=0.05))
    assert answer == Failed("its memory could not be read within 0.05 seconds")


def test_while_too_many_hang_no_memory_is_read(
    writers: Callable[..., list[Job]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "MAX_HANGING", 0)
    jobs = writers(f"echo '{WRITTEN}'")
    (answer,) = run_writer(job())
    assert isinstance(answer, Written) and "hang in the kernel" in answer.lost["memory"]
    assert jobs[0].capture is Capture.THREADS


@pytest.mark.parametrize(("room", "said"), [(True, "+"), (False, "-")])
def test_a_writer_that_needs_room_hears_whether_there_is(
    room: bool, said: str, writers: Callable[..., list[Job]]
) -> None:
    # GIVEN a writer that asks for room, and says what it was told
    needs = '{"type":"needs-room","written":1,"free":2}'
    failed = '{\\"type\\":\\"failed\\",\\"why\\":\\"'
    writers(f'echo \'{needs}\'; echo "{failed}$(head -c 1)\\"}}"')
    asked: list[tuple[int, int]] = []

    def make_room(written: int, free: int) -> bool:
        asked.append((written, free))
        return room

    assert list(run_writer(job(), make_room)) == [Failed(said)]
    assert asked == [(1, 2)]


def test_a_writer_that_ends_without_an_answer_about_room(
    writers: Callable[..., list[Job]],
) -> None:
    writers("""exec <&-; echo '{"type":"needs-room","written":1,"free":2}'""")
    (answer,) = run_writer(job())
    assert answer == Failed("the writer ended with status 0 and no answer")
