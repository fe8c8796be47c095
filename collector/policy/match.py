"""Which rule a death falls under: `Facts` and a `Policy` to a `Decision`.

The first rule whose conditions all hold wins, then the defaults. Globs are those of fnmatch(3)
without FNM_PATHNAME: `*` matches `/` too, case counts, the whole text must match. A fact that is
not known (None) satisfies no condition on it. Exits are different: they are recorded only if a
rule that names `cause: exit` matches.

Pure, but for `Watcher.rule_of`, and fast (the dying process is waiting): a policy's globs are
compiled once.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from collector.model import Capture, Cause, Release
from collector.policy.facts import facts_of_living
from collector.policy.opted import COLLECT, opted_out
from collector.policy.types import (
    USUAL_PODS,
    Action,
    ArmRule,
    Decision,
    Facts,
    KubernetesSettings,
    Match,
    Policy,
    Rule,
    Watch,
)
from collector.redact.types import Redact
from collector.signals import signal_name

DEFAULTS = "defaults"
OPTED_OUT = COLLECT  # in place of a rule's name, of what a pod has opted out of

_EXIT_UNNAMED = Decision(
    rule=DEFAULTS,
    action=Action(capture=Capture.NONE),
    why="exits are recorded only for services named by a rule",
)


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """How one rule fared with the facts of a death; `why` is one line for people."""

    rule: str
    matched: bool
    why: str


class _Condition(msgspec.Struct, frozen=True, kw_only=True):
    """One condition of a rule: the fact that it looks at and the test of a known value."""

    fact: str
    test: Callable[[Any], bool]
    wanted: str


class _Compiled(msgspec.Struct, frozen=True, kw_only=True):
    rule: Rule
    conditions: tuple[_Condition, ...]
    decision: Decision
    takes_exits: bool


class Matcher:
    """A policy made ready for many decisions. Immutable, so safe in any thread."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._rules = tuple(_compile(rule) for rule in policy.rules)
        self._exit_rules = tuple(rule for rule in self._rules if rule.takes_exits)
        why = "no rule matches" if policy.rules else "the policy has no rules"
        self._defaults = Decision(rule=DEFAULTS, action=policy.defaults, why=why)

    def decide(self, facts: Facts) -> Decision:
        """What policy says of a death with these facts."""
        return self._opted_out(facts) or self.by_rules(facts)

    def by_rules(self, facts: Facts) -> Decision:
        """The same, whatever its pod says of itself."""
        for compiled in self._exit_rules if facts.cause is Cause.EXIT else self._rules:
            for condition in compiled.conditions:
                value = getattr(facts, condition.fact)
                if value is None or not condition.test(value):
                    break
            else:
                return compiled.decision
        return _EXIT_UNNAMED if facts.cause is Cause.EXIT else self._defaults

    def _opted_out(self, facts: Facts) -> Decision | None:
        """Where its pod wants nothing collected."""
        if facts.of_pod is None:
            return None
        why = opted_out(self.policy.kubernetes, facts.of_pod)
        if why is None:
            return None
        action = msgspec.structs.replace(self.policy.defaults, capture=Capture.NONE, collect=None)
        return Decision(rule=OPTED_OUT, action=action, why=why)

    def trials(self, facts: Facts) -> tuple[Trial, ...]:
        """Each rule that was looked at, the matching one last; for explaining a decision."""
        if out := self._opted_out(facts):
            return (Trial(rule=out.rule, matched=True, why=out.why),)
        tried = []
        for compiled in self._rules:
            trial = _try(compiled, facts)
            tried.append(trial)
            if trial.matched:
                break
        return tuple(tried)


def decide(policy: Policy, facts: Facts) -> Decision:
    """What a policy says of a death with these facts; compiles the policy at its first use."""
    return matcher(policy).decide(facts)


def redacts_of_living(policy: Policy, facts: Facts) -> Redact:
    """What is redacted in a core of a process that goes on: as of a death that no condition on
    `signal` or `cause` is true of."""
    return matcher(policy).by_rules(facts).action.redact


def all_instant(policy: Policy) -> bool:
    """Whether no rule, nor the defaults, want a process to be held until its core is written."""
    actions = (policy.defaults, *(rule.action for rule in policy.rules))
    return all(action.release is Release.INSTANT for action in actions)


def wants_exits(policy: Policy) -> bool:
    """Whether some rule records exits, so that the probe must report them."""
    return any(Cause.EXIT in (rule.match.cause or ()) for rule in policy.rules)


class OfTheLiving(Protocol):
    """A rule for processes that live: of `watch`, `arm` or `trace`."""

    @property
    def name(self) -> str: ...

    @property
    def match(self) -> Match: ...


R = TypeVar("R", bound=OfTheLiving)


class Watcher(Generic[R]):
    """Such rules made ready: which of them, the first, names a live process; none does that is in a
    pod which has opted out."""

    def __init__(self, rules: Iterable[R], kubernetes: KubernetesSettings = USUAL_PODS) -> None:
        self._rules = {rule.name: rule for rule in rules}
        named = (Rule(name=r.name, match=r.match, action=Action()) for r in self._rules.values())
        self._matcher = Matcher(Policy(rules=tuple(named), kubernetes=kubernetes))

    def rule_of(self, pid: int) -> R | None:
        """The same of a process by its pid, if there are rules; its files are read for it."""
        if not self._rules:
            return None
        return self.rule(facts_of_living(pid, self._matcher.policy.kubernetes.root))

    def rule(self, facts: Facts) -> R | None:
        """None: no rule names it. What it would die of does not matter."""
        alive = msgspec.structs.replace(facts, cause=Cause.SNAPSHOT, signal=None)
        return self._rules.get(self._matcher.decide(alive).rule)


def watch_rule(policy: Policy, facts: Facts) -> Watch | None:
    """The `watch` rule of a policy for a process with these facts."""
    return Watcher(policy.watch, policy.kubernetes).rule(facts)


def arm_rule(policy: Policy, facts: Facts) -> ArmRule | None:
    """The `arm` rule of a policy for a process with these facts."""
    return Watcher(policy.arm.rules, policy.kubernetes).rule(facts)


_last: Matcher | None = None


def matcher(policy: Policy) -> Matcher:
    """The policy's Matcher; the one of the last policy asked for is kept."""
    global _last
    kept = _last
    if kept is None or kept.policy is not policy:
        _last = kept = Matcher(policy)
    return kept


def _try(compiled: _Compiled, facts: Facts) -> Trial:
    name = compiled.rule.name
    if facts.cause is Cause.EXIT and not compiled.takes_exits:
        return Trial(rule=name, matched=False, why="does not name cause exit")
    for condition in compiled.conditions:
        value = getattr(facts, condition.fact)
        if value is None:
            return Trial(rule=name, matched=False, why=f"{condition.fact} is not known")
        if not condition.test(value):
            return Trial(
                rule=name, matched=False, why=f"{condition.fact} is not {condition.wanted}"
            )
    return Trial(rule=name, matched=True, why=compiled.decision.why)


def _compile(rule: Rule) -> _Compiled:
    conditions = tuple(_conditions(rule.match))
    why = " and ".join(f"{condition.fact} is {condition.wanted}" for condition in conditions)
    return _Compiled(
        rule=rule,
        conditions=conditions,
        decision=Decision(rule=rule.name, action=rule.action, why=why or "no condition"),
        takes_exits=Cause.EXIT in (rule.match.cause or ()),
    )


def _conditions(match: Match) -> Iterable[_Condition]:
    """The conditions of a rule, the cheapest to test first."""
    if match.cause is not None:
        yield _one_of("cause", match.cause, str)
    if match.signal is not None:
        yield _one_of("signal", match.signal, signal_name)
    if match.uid is not None:
        yield _one_of("uid", match.uid, str)
    if match.container is not None:
        wanted = match.container
        text = "true" if wanted else "false"
        yield _Condition(fact="container", test=wanted.__eq__, wanted=text)
    for fact in ("comm", "unit", "exe", "cgroup", "namespace", "pod", "image"):
        globs: tuple[str, ...] | None = getattr(match, fact)
        if globs is not None:
            yield _Condition(fact=fact, test=_globs(globs), wanted=_alternatives(globs))
    for fact in ("labels", "annotations"):
        for name, globs in getattr(match, fact) or ():
            text = f"{name}={_alternatives(globs)}"
            yield _Condition(fact=fact, test=_value_of(name, _globs(globs)), wanted=text)


def _one_of(fact: str, values: tuple[Any, ...], show: Callable[[Any], str]) -> _Condition:
    wanted = _alternatives(tuple(show(value) for value in values))
    return _Condition(fact=fact, test=frozenset(values).__contains__, wanted=wanted)


def _globs(globs: tuple[str, ...]) -> Callable[[str], bool]:
    matches = re.compile("|".join(fnmatch.translate(glob) for glob in globs)).match
    return lambda text: matches(text) is not None


def _value_of(name: str, matches: Callable[[str], bool]) -> Callable[[dict[str, str]], bool]:
    return lambda given: name in given and matches(given[name])


def _alternatives(texts: tuple[str, ...]) -> str:
    """`a or b`; long lists are cut, as the text goes into every record."""
    shown = texts if len(texts) <= 4 else (*texts[:3], f"{len(texts) - 3} others")
    return " or ".join(shown)
