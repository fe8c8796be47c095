"""The first rule whose conditions all hold decides, then the defaults."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from collector.model import Capture, Cause
from collector.policy.match import Trial, decide, matcher, wants_exits
from collector.policy.types import Action, Decision, Facts, Match, Policy, Rule

STACKS = Action(capture=Capture.STACKS)
FACTS = Facts(
    cause=Cause.SIGNAL,
    exe="/usr/lib/db/15/bin/db",
    comm="db",
    cgroup="/system.slice/db.service/worker",
    unit="db.service",
    uid=26,
    signal=11,
    container=False,
)


def policy(*matches: Match) -> Policy:
    """A policy with a rule `r0`, `r1`, ... for each match."""
    rules = tuple(Rule(name=f"r{n}", match=m, action=STACKS) for n, m in enumerate(matches))
    return Policy(rules=rules)


@pytest.mark.parametrize(
    ("match", "holds"),
    [
        (Match(exe=("/usr/lib/*/bin/db",)), True),  # * matches /
        (Match(exe=("/usr/lib/?b/15/bin/[a-d]b",)), True),
        (Match(exe=("db",)), False),  # the whole text
        (Match(exe=("/USR/*",)), False),  # case counts
        (Match(exe=("/bin/*", "*/db")), True),
        (Match(comm=("d",)), False),
        (Match(cgroup=("/system.slice/*",)), True),
        (Match(unit=("*.service",)), True),
        (Match(uid=(0,)), False),
        (Match(uid=(0, 26)), True),
        (Match(signal=(6, 11)), True),
        (Match(signal=(6,)), False),
        (Match(cause=(Cause.SIGNAL, Cause.OOM)), True),
        (Match(cause=(Cause.KILLED,)), False),
        (Match(container=False), True),
        (Match(container=True), False),
        (Match(unit=("db.service",), signal=(11,), uid=(26,)), True),
        (Match(unit=("db.service",), signal=(11,), uid=(27,)), False),
        (Match(), True),
    ],
)
def test_a_rule_matches_if_all_its_conditions_hold(match: Match, holds: bool) -> None:
    assert decide(policy(match), FACTS).rule == ("r0" if holds else "defaults")


@pytest.mark.parametrize(
    "match",
    [
        Match(exe=("*",)),
        Match(comm=("*",)),
        Match(cgroup=("*",)),
        Match(unit=("*",)),
        Match(uid=(0,)),
        Match(signal=(11,)),
        Match(container=False),
    ],
)
def test_an_unknown_fact_satisfies_no_condition(match: Match) -> None:
    assert decide(policy(match), Facts(cause=Cause.SIGNAL)).rule == "defaults"


def test_a_newline_in_a_name_does_not_end_it() -> None:
    facts = Facts(cause=Cause.SIGNAL, exe="/bin/db\n", comm="a\nb")
    assert decide(policy(Match(exe=("/bin/db",))), facts).rule == "defaults"
    assert decide(policy(Match(comm=("a*b",))), facts).rule == "r0"


def test_the_first_matching_rule_decides_and_says_why() -> None:
    # GIVEN three rules, of which the last two match
    rules = policy(
        Match(signal=(6,)),
        Match(exe=("/opt/*", "/usr/*"), signal=(11, 7), cause=(Cause.SIGNAL,), container=False),
        Match(uid=(26,)),
    )
    # WHEN a death is decided
    # THEN the second decides
    why = (
        "cause is signal and signal is SIGSEGV or SIGBUS and container is false "
        "and exe is /opt/* or /usr/*"
    )
    assert decide(rules, FACTS) == Decision(rule="r1", action=STACKS, why=why)

    # AND the trials tell how far each rule got
    assert matcher(rules).trials(FACTS) == (
        Trial(rule="r0", matched=False, why="signal is not SIGABRT"),
        Trial(rule="r1", matched=True, why=why),
    )


def test_long_lists_are_cut_in_the_reason() -> None:
    rules = policy(Match(uid=tuple(range(100))))
    assert decide(rules, FACTS).why == "uid is 0 or 1 or 2 or 97 others"


def test_no_rule_means_the_defaults() -> None:
    defaults = Action(capture=Capture.THREADS)
    empty = Policy(defaults=defaults)
    full = replace(policy(Match(uid=(0,))), defaults=defaults)
    assert decide(empty, FACTS) == Decision(
        rule="defaults", action=defaults, why="the policy has no rules"
    )
    assert decide(full, FACTS) == Decision(rule="defaults", action=defaults, why="no rule matches")


def test_exits_are_recorded_only_where_a_rule_names_them() -> None:
    # GIVEN a rule for everything of a service, and one that names exits of another
    exits = Match(cause=(Cause.EXIT, Cause.SIGNAL), unit=("web.service",))
    rules = policy(Match(unit=("db.service",)), exits)
    db = replace(FACTS, cause=Cause.EXIT, signal=None)
    web = replace(db, unit="web.service")

    # WHEN both services exit
    # THEN only the named one is recorded
    assert decide(rules, db) == Decision(
        rule="defaults",
        action=Action(capture=Capture.NONE),
        why="exits are recorded only for services named by a rule",
    )
    assert decide(rules, web) == Decision(
        rule="r1", action=STACKS, why="cause is exit or signal and unit is web.service"
    )
    assert matcher(rules).trials(web)[0] == Trial(
        rule="r0", matched=False, why="does not name cause exit"
    )


def test_the_probe_need_report_exits_only_if_a_rule_wants_them() -> None:
    assert not wants_exits(policy(Match(unit=("a",)), Match(cause=(Cause.KILLED,))))
    assert wants_exits(policy(Match(unit=("a",)), Match(cause=(Cause.KILLED, Cause.EXIT))))


def test_a_changed_policy_is_not_decided_by_the_old_one() -> None:
    before, after = policy(Match(uid=(26,))), policy(Match(uid=(0,)))
    rules = [decide(p, FACTS).rule for p in (before, after, before)]
    assert rules == ["r0", "defaults", "r0"]
