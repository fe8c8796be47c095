"""The first rule whose conditions all hold decides, then the defaults."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from collector.circumstances import Pod, PodSource
from collector.model import Capture, Cause
from collector.policy.match import (
    OPTED_OUT,
    Trial,
    Watcher,
    decide,
    matcher,
    redacts_of_living,
    wants_exits,
)
from collector.policy.opted import COLLECT
from collector.policy.types import (
    Action,
    Decision,
    Facts,
    KubernetesSettings,
    Match,
    PodDefault,
    Policy,
    Rule,
    Watch,
)
from collector.redact.types import Redact

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
        Match(namespace=("*",)),
        Match(pod=("*",)),
        Match(image=("*",)),
        Match(labels=(("app", ("*",)),)),
        Match(annotations=(("app", ("*",)),)),
    ],
)
def test_an_unknown_fact_satisfies_no_condition(match: Match) -> None:
    assert decide(policy(match), Facts(cause=Cause.SIGNAL)).rule == "defaults"
    bare = Facts(cause=Cause.SIGNAL, of_pod=Pod(uid="1", source=PodSource.CGROUP))
    assert decide(policy(match), bare).rule == "defaults"


POD = Pod(
    uid="1",
    source=PodSource.BUNDLE,
    name="web-0",
    namespace="shop",
    image="registry.example/shop/web:1.4",
    labels={"app": "web", "tier": "front"},
    annotations={"team": "cart"},
)


@pytest.mark.parametrize(
    ("match", "holds"),
    [
        (Match(namespace=("shop", "x")), True),
        (Match(namespace=("sho",)), False),
        (Match(pod=("web-*",)), True),
        (Match(pod=("db-*",)), False),
        (Match(image=("*/shop/web:*",)), True),
        (Match(image=("web",)), False),
        (Match(labels=(("app", ("api", "w*")), ("tier", ("front",)))), True),
        (Match(labels=(("app", ("web",)), ("tier", ("back",)))), False),
        (Match(labels=(("ap", ("*",)),)), False),
        (Match(labels=(("team", ("*",)),)), False),  # an annotation is no label
        (Match(annotations=(("team", ("c?rt",)),)), True),
        (Match(namespace=("shop",), comm=("other",)), False),
    ],
)
def test_rules_match_by_what_is_known_of_a_pod(match: Match, holds: bool) -> None:
    facts = replace(FACTS, of_pod=POD)
    assert decide(policy(match), facts).rule == ("r0" if holds else "defaults")
    # AND nothing that is in no pod
    assert decide(policy(match), FACTS).rule == "defaults"


@pytest.mark.parametrize(
    ("default", "said", "collected"),
    [
        ("in", {}, True),
        ("in", {"annotations": {COLLECT: "true"}}, True),
        ("in", {"annotations": {COLLECT: "false"}}, False),
        ("in", {"labels": {COLLECT: "false"}}, False),
        ("in", {"annotations": {COLLECT: "no"}}, True),
        ("out", {}, False),
        ("out", {"annotations": {COLLECT: "true"}}, True),
        ("out", {"labels": {COLLECT: "true"}}, True),
        ("out", {"annotations": {COLLECT: "True"}}, False),
        # the annotation goes before the label
        ("in", {"annotations": {COLLECT: "true"}, "labels": {COLLECT: "false"}}, True),
    ],
)
def test_pods_say_whether_they_are_collected(
    default: str, said: dict[str, dict[str, str]], collected: bool
) -> None:
    settings = KubernetesSettings(default=PodDefault(default))
    rules = replace(policy(Match(comm=("db",))), kubernetes=settings)
    facts = replace(FACTS, of_pod=replace(POD, **{"annotations": {}, **said}))
    decided = decide(rules, facts)
    assert (decided.rule, decided.action.capture) == (
        ("r0", Capture.STACKS) if collected else (OPTED_OUT, Capture.NONE)
    )
    # AND the same goes for processes that live, and is said
    watcher = Watcher((Watch(name="w", match=Match(comm=("db",))),), settings)
    assert (watcher.rule(facts) is not None) == collected
    assert (matcher(rules).trials(facts)[0].rule == OPTED_OUT) != collected
    # AND what is redacted is what is redacted of it, if somebody takes a snapshot
    secret = replace(STACKS, redact=Redact(environment=("KEY",)))
    rules = replace(rules, rules=(replace(rules.rules[0], action=secret),))
    assert redacts_of_living(rules, facts).environment == ("KEY",)
    # AND nothing else is touched by it
    assert decide(rules, FACTS).rule == "r0"


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
