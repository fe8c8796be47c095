"""Budgets of captures: per executable and per crash site, and nothing goes uncounted."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

from msgspec.structs import replace

from collector.model import Capture, CrashSite
from collector.policy.limit import Admission, Limiter
from collector.policy.types import Action, Limit

FULL, STACKS, THREADS = Capture.FULL, Capture.STACKS, Capture.THREADS
RECORD, NONE = Capture.RECORD, Capture.NONE
HERE, THERE = CrashSite(build_id="ab", offset=1), CrashSite(build_id="ab", offset=2)


def limited(captures: int, fallback: Capture = STACKS, capture: Capture = FULL) -> Action:
    limit = Limit(captures=captures, period=3600.0, fallback=fallback)
    return Action(capture=capture, limit=limit)


def admitted(limiter: Limiter, action: Action, times: int, exe: str = "/bin/a") -> list[Capture]:
    return [limiter.admit(action, exe, None, now=float(n)).capture for n in range(times)]


def test_a_crash_loop_gets_full_then_smaller_captures_then_records() -> None:
    # GIVEN a limit of 2 captures in an hour
    limiter = Limiter()

    # WHEN a program crashes 12 times
    got = admitted(limiter, limited(2), 12)

    # THEN 2 are full, 4 times as many are smaller, the others are recorded
    assert got == [FULL] * 2 + [STACKS] * 8 + [RECORD] * 2


def test_the_reason_says_which_budget_is_used_up() -> None:
    limiter, action = Limiter(), limited(1, THREADS)
    first = limiter.admit(action, "/bin/a", HERE, now=0.0)
    same_exe = limiter.admit(action, "/bin/a", THERE, now=1.0)
    same_site = limiter.admit(action, "/bin/b", HERE, now=2.0)
    for _ in range(3):
        limiter.admit(action, "/bin/a", None, now=3.0)
    nothing_left = limiter.admit(action, "/bin/a", None, now=4.0)
    assert [first, same_exe, same_site, nothing_left] == [
        Admission(capture=FULL, reason=None),
        Admission(
            capture=THREADS, reason="limit of 1 full captures per 1h used up for this executable"
        ),
        Admission(
            capture=THREADS, reason="limit of 1 full captures per 1h used up for this crash site"
        ),
        Admission(
            capture=RECORD,
            reason="limit of 1 full captures per 1h used up for this executable; "
            "limit of 4 smaller captures per 1h used up for this executable",
        ),
    ]


def test_a_refused_capture_is_charged_to_neither_budget() -> None:
    limiter, action = Limiter(), limited(1, RECORD)
    limiter.admit(action, "/bin/a", HERE, now=0.0)
    limiter.admit(action, "/bin/b", HERE, now=1.0)  # refused for its site
    assert limiter.admit(action, "/bin/b", THERE, now=2.0).capture is FULL


def test_an_owner_has_eight_times_as_much_whatever_ids_it_takes() -> None:
    # GIVEN a container, which crashes with another executable and another id each time
    limiter, action = Limiter(), limited(1, RECORD)

    def admit(number: int, owner: str) -> Admission:
        return limiter.admit(action, f"/{number}", None, now=0.0, uid=number, owner=owner)

    got = [admit(number, "docker-0.scope") for number in range(9)]
    # THEN the ninth one is beyond its budget
    assert [one.capture for one in got] == [FULL] * 8 + [RECORD]
    why = "limit of 8 full captures per 1h used up for its owner, docker-0.scope"
    assert got[8].reason == why
    # AND others have their own
    assert admit(9, "db.service").capture is FULL
    # AND so has a user whose owner nobody named
    got = [limiter.admit(action, f"/{n}", None, now=0.0, uid=1000) for n in range(10, 19)]
    assert got[8].reason == why.replace("docker-0.scope", "uid 1000")


def test_the_window_slides() -> None:
    limiter, action = Limiter(), limited(2, RECORD)
    times = [0.0, 1800.0, 3599.9, 3600.0, 5399.9, 5400.0]
    got = [limiter.admit(action, "/bin/a", None, now=now).capture for now in times]
    assert got == [FULL, FULL, RECORD, FULL, RECORD, FULL]


def test_executables_do_not_share_a_budget_but_unknown_ones_do() -> None:
    limiter, action = Limiter(), limited(1, RECORD)
    got = [
        limiter.admit(action, exe, None, now=0.0).capture for exe in ("/a", "/b", None, None, "/a")
    ]
    assert got == [FULL, FULL, FULL, RECORD, RECORD]


def test_no_captures_means_records_only() -> None:
    assert admitted(Limiter(), limited(0), 3) == [RECORD] * 3
    assert admitted(Limiter(), limited(0, THREADS, capture=STACKS), 2) == [RECORD] * 2


def test_smaller_captures_that_a_rule_asks_for_are_bounded_too() -> None:
    assert admitted(Limiter(), limited(1, capture=STACKS), 5) == [STACKS] * 4 + [RECORD]


def test_what_has_no_core_or_no_limit_is_always_admitted() -> None:
    limiter = Limiter()
    assert admitted(limiter, limited(0, capture=RECORD), 3) == [RECORD] * 3
    assert admitted(limiter, limited(0, capture=NONE), 3) == [NONE] * 3
    assert admitted(limiter, replace(limited(0), limit=None), 3) == [FULL] * 3


def test_memory_is_bounded_by_forgetting_who_crashed_longest_ago() -> None:
    # GIVEN room for 10 windows, and 10 executables that have used up theirs
    limiter, action = Limiter(max_keys=10), limited(1, RECORD)
    for n in range(10):
        limiter.admit(action, f"/bin/{n}", None, now=0.0)

    # WHEN one more crashes
    limiter.admit(action, "/bin/10", None, now=1.0)

    # THEN only the window that was used longest ago is forgotten
    assert limiter.admit(action, "/bin/1", None, now=2.0).capture is RECORD
    assert limiter.admit(action, "/bin/0", None, now=3.0).capture is FULL


def test_the_clock_is_asked_when_no_time_is_given() -> None:
    times = iter([0.0, 1.0, 3600.0])
    limiter = Limiter(clock=lambda: next(times))
    got = [limiter.admit(limited(1, RECORD), "/a", None).capture for _ in range(3)]
    assert got == [FULL, RECORD, FULL]


def test_a_window_in_use_is_not_the_one_to_be_given_up() -> None:
    limiter, action = Limiter(max_keys=2), limited(1, RECORD)
    exes = ["/busy", "/a", "/busy", "/b", "/busy"]
    assert [limiter.admit(action, exe, None, now=0.0).capture for exe in exes] == [
        FULL,
        FULL,
        RECORD,
        FULL,
        RECORD,
    ]


def test_threads_are_judged_one_at_a_time() -> None:
    # GIVEN a clock, read while judging, in which two threads would meet if both were let in
    meeting = threading.Barrier(2)
    met = []

    def clock() -> float:
        with contextlib.suppress(threading.BrokenBarrierError):
            meeting.wait(0.1)
            met.append(True)
        return 0.0

    # WHEN two threads ask for the last capture of a budget
    limiter, action = Limiter(clock=clock), limited(1, RECORD)
    with ThreadPoolExecutor(2) as pool:
        got = list(pool.map(lambda _: limiter.admit(action, "/a", HERE).capture, range(2)))

    # THEN they never were inside together, and one got it
    assert met == []
    assert sorted(got) == [FULL, RECORD]
