"""`coreward policy`: check a configuration, or ask it about a death that has not happened."""

from __future__ import annotations

import argparse
import pwd
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from collector.circumstances import Pod, PodSource
from collector.cli.choice import parsed
from collector.errors import UsageError
from collector.model import Capture, Cause
from collector.pods.cgroup import in_pod
from collector.policy.facts import facts_of_living, is_container, unit_of_cgroup
from collector.policy.limit import FALLBACK_FACTOR
from collector.policy.load import PolicyErrors, load
from collector.policy.match import DEFAULTS, Trial, arm_rule, matcher, watch_rule
from collector.policy.types import (
    Action,
    ArmRule,
    Codec,
    Collect,
    Decision,
    Facts,
    Limit,
    Policy,
    Watch,
)
from collector.policy.units import parse_signal, quote, show_duration, show_size
from collector.redact.types import Redact
from collector.signals import CORE_SIGNALS, signal_name
from collector.store.encoding import json_text

_OF_POD, _OF_PODS = "of_pod", ("namespace", "pod", "image", "labels", "annotations")


class PolicyVerb:
    """Check a configuration file before the agent reads it, or ask what it would do with a death:
    what would be captured, which rule says so, and why."""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        actions = parser.add_subparsers(prog="coreward policy", metavar="check|test", required=True)

        check = actions.add_parser("check", help="report everything that is wrong with a file")
        check.set_defaults(policy_action=_check)

        test = actions.add_parser(
            "test",
            help="what would happen to a process that dies",
            description="Says what the configuration would do with a death. A fact that is not "
            "given is unknown, and satisfies no condition on it.",
        )
        test.set_defaults(policy_action=_test)
        test.add_argument("--pid", type=_number, help="take the facts of this live process")
        test.add_argument("--exe", help="path of the executable")
        test.add_argument("--comm", help="name of the process, as in /proc/PID/comm")
        test.add_argument("--cgroup", help="path of its cgroup; says unit and container too")
        test.add_argument("--unit", help="its systemd unit")
        who = test.add_mutually_exclusive_group()
        who.add_argument("--uid", type=_number, help="its real user id")
        who.add_argument("--user", help="its user, by name")
        test.add_argument("--signal", help="what it dies by: SIGSEGV, SEGV or 11")
        test.add_argument(
            "--cause",
            choices=[str(cause) for cause in Cause],
            default=str(Cause.SIGNAL),
            help="how it dies (default: %(default)s)",
        )
        test.add_argument(
            "--container",
            action=argparse.BooleanOptionalAction,
            help="whether it runs in a container",
        )

        test.add_argument("--namespace", help="of its pod of Kubernetes; so are the next ones")
        test.add_argument("--pod", help="name of the pod")
        test.add_argument("--image", help="of its container")
        for kind in ("label", "annotation"):
            test.add_argument(
                f"--{kind}",
                action="append",
                type=_pair,
                metavar="NAME=VALUE",
                help=f"{'an' if kind[0] == 'a' else 'a'} {kind} of the pod; as often as there are",
            )

        for action in (check, test):
            action.add_argument("file", type=Path, metavar="FILE", help="the configuration")
            action.add_argument("--json", action="store_true", help="print JSON")

    def run(self, args: argparse.Namespace) -> int:
        action: Callable[[argparse.Namespace], int] = args.policy_action
        return action(args)


def _check(args: argparse.Namespace) -> int:
    try:
        policy = load(args.file)
    except PolicyErrors as errors:
        if not args.json:
            raise
        problems = [
            {"line": error.line, "key": error.key, "problem": error.problem}
            for error in errors.problems
        ]
        _print_json({"file": str(args.file), "ok": False, "problems": problems})
        return errors.exit_status
    rules = len(policy.rules)
    living = {"watch": len(policy.watch), "arm": len(policy.arm.rules)}
    if args.json:
        _print_json({"file": str(args.file), "ok": True, "rules": rules, **living})
    else:
        others = "".join(f", {count} of `{name}`" for name, count in living.items() if count)
        print(f"{args.file}: ok: {rules} rule{'' if rules == 1 else 's'}{others}")
    return 0


def _test(args: argparse.Namespace) -> int:
    policy = load(args.file)
    facts = _facts(args, policy.kubernetes.root)
    ready = matcher(policy)
    decision = ready.decide(facts)
    trials = ready.trials(facts)
    watch, arm = watch_rule(policy, facts), arm_rule(policy, facts)
    if args.json:
        watched = None if watch is None else watch.name
        armed = None if arm is None else arm.name
        found = {"facts": facts, "decision": decision, "trials": trials}
        _print_json({**found, "watch": watched, "arm": armed})
    else:
        living = [*_watch(policy, watch), *_arm(policy, arm)]
        lives = ["while it lives", *living] if living else []
        print("\n".join([*_report(facts, decision, trials), *lives]))
    return 0


def _facts(args: argparse.Namespace, root: str) -> Facts:
    """The facts of --pid, if it is given, with the explicit arguments over them."""
    cause = Cause(args.cause)
    if args.signal is not None and cause is Cause.EXIT:
        raise UsageError("--signal: an exit has no signal; leave it out, or choose another --cause")
    facts = Facts(cause=cause)
    if args.pid is not None:
        facts = replace(facts_of_living(args.pid, root), cause=cause)
        if facts == Facts(cause=cause):
            raise UsageError(f"--pid {args.pid}: there is no such process")
    given: dict[str, Any] = {}
    if args.cgroup is not None:
        given["unit"] = unit_of_cgroup(args.cgroup)
        given["container"] = is_container(args.cgroup, None)
    for fact in ("exe", "comm", "cgroup", "unit", "uid", "container"):
        if getattr(args, fact) is not None:
            given[fact] = getattr(args, fact)
    if args.user is not None:
        given["uid"] = _uid(args.user)
    if args.signal is not None:
        given["signal"] = parsed("--signal", parse_signal, args.signal)
    return replace(facts, **given, of_pod=_pod(args, facts.of_pod))


def _pod(args: argparse.Namespace, known: Pod | None) -> Pod | None:
    """The pod that the arguments describe, over the one that is known."""
    one = None if args.cgroup is None else in_pod(args.cgroup)
    if one is not None:
        known = Pod(uid=one.uid, container_id=one.container_id, source=PodSource.CGROUP)
    given: dict[str, Any] = {"name": args.pod, "namespace": args.namespace, "image": args.image}
    given |= {"labels": dict(args.label or ()), "annotations": dict(args.annotation or ())}
    given = {key: value for key, value in given.items() if value}
    if not given:
        return known
    return replace(known or Pod(uid="", source=PodSource.BUNDLE), **given)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{quote(text)}: expected NAME=VALUE")
    return name, value


def _uid(name: str) -> int:
    try:
        return pwd.getpwnam(name).pw_uid
    except (KeyError, ValueError):
        raise UsageError(f"--user: no user {quote(name)} on this host") from None


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise argparse.ArgumentTypeError(f"{quote(text)} is not a number")
    return int(text)


def _report(facts: Facts, decision: Decision, trials: tuple[Trial, ...]) -> list[str]:
    """The answer for people, one line per fact, rule and setting."""
    plain = [fact for fact in facts.__struct_fields__ if fact != _OF_POD]
    given = {fact: getattr(facts, fact) for fact in (*plain, *_OF_PODS)}
    shown = {
        fact: _show_fact(fact, value) for fact, value in given.items() if value not in (None, {})
    }
    unknown = [fact for fact in plain if fact not in shown]
    lines = ["facts"]
    lines += [f"  {fact:<13}{text}" for fact, text in shown.items()]
    if unknown:
        lines.append(f"  {'not known':<13}{', '.join(unknown)}")
    lines.append("rules")
    lines += [f"  {'+' if trial.matched else '-'} {trial.rule}: {trial.why}" for trial in trials]
    if decision.rule == DEFAULTS:
        lines.append(f"  + {DEFAULTS}: {decision.why}")
    lines.append("what would happen")
    lines += [f"  {setting:<13}{text}" for setting, text in _settings(decision.action)]
    if facts.signal is not None and facts.signal not in CORE_SIGNALS:
        lines.append(f"  {'but':<13}{signal_name(facts.signal)} dumps no core: a record at most")
    return lines


def _watch(policy: Policy, watch: Watch | None) -> list[str]:
    """Whether its threads would be sampled while it lives."""
    if not policy.watch:
        return []
    if watch is None:
        return [f"  {'watched':<13}no rule of `watch` matches"]
    kept = f"{watch.keep} samples, one every {show_duration(watch.every)}"
    lines = [f"  {'watched':<13}{watch.name}: {kept}"]
    return lines + [
        f"  {'snapshot':<13}{trigger.name}: {trigger.condition.value}, mode {trigger.mode.value}"
        for trigger in watch.triggers
    ]


def _arm(policy: Policy, rule: ArmRule | None) -> list[str]:
    """Whether its memory would be held while it lives."""
    if not policy.arm.rules:
        return []
    if rule is None:
        return [f"  {'armed':<13}no rule of `arm` matches"]
    causes = ", ".join(str(cause) for cause in rule.on)
    return [f"  {'armed':<13}{rule.name}: {rule.capture} on {causes}"]


def _show_fact(fact: str, value: Any) -> str:
    if fact == "signal":
        return signal_name(int(value))
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        value = ", ".join(f"{key}={text}" for key, text in value.items())
    text = str(value)
    return text if text.isprintable() else quote(text, most=4096)


def _settings(action: Action) -> list[tuple[str, str]]:
    """The settings that have an effect with this capture."""
    if action.collect is None and action.capture in (Capture.RECORD, Capture.NONE):
        shown = [("capture", str(action.capture))]
        if action.redact.texts and action.capture is Capture.RECORD:
            shown.append(("redact", _redact(action.redact)))
        return shown
    compress, limit = action.compress, action.limit
    zstd = f"zstd, level {compress.level}, workers {compress.workers}"
    lines = [("capture", _collect(action.collect) if action.collect else str(action.capture))]
    if action.capture is Capture.FULL:
        lines.append(("memory", _memory(action)))
    lines += [
        ("release", str(action.release)),
        ("compress", "none" if compress.codec is Codec.NONE else zstd),
    ]
    lines.append(("limit", "none" if limit is None else _limit(action.capture, limit)))
    if action.redact.anything:
        lines.append(("redact", _redact(action.redact)))
    if action.honour_rlimit:
        lines.append(("RLIMIT_CORE", "bounds the core"))
    return lines


def _redact(redact: Redact) -> str:
    """What is zero, and hidden in the record."""
    of = (
        ("environment", redact.environment),
        ("arguments", redact.arguments),
        ("patterns", tuple(pattern.name for pattern in redact.patterns)),
        ("mappings", redact.mappings),
    )
    return "; ".join(f"{name} {', '.join(names)}" for name, names in of if names)


def _collect(collect: Collect) -> str:
    """What is kept of each further death at one place."""
    some = f"{collect.then} of {collect.times} more, " if collect.times else ""
    span = show_duration(collect.period)
    return f"{collect.first}, {some}then {collect.after}; per place and {span}"


def _limit(capture: Capture, limit: Limit) -> str:
    period = show_duration(limit.period)
    smaller = f"{limit.captures * FALLBACK_FACTOR} per {period}, then record"
    if capture is not Capture.FULL:
        return smaller
    full = f"{limit.captures} per {period}, then "
    return full + ("record" if limit.fallback is Capture.RECORD else f"{limit.fallback}: {smaller}")


def _memory(action: Action) -> str:
    memory = action.memory
    parts = [
        "what the kernel would dump" if memory.max is None else f"at most {show_size(memory.max)}"
    ]
    if memory.include:
        parts.append(f"with {', '.join(memory.include)}")
    if memory.exclude:
        parts.append(f"without {', '.join(memory.exclude)}")
    if memory.dontdump:
        parts.append("MADV_DONTDUMP too")
    if memory.coredump_filter is not None:
        parts.append(f"coredump_filter {memory.coredump_filter:#x}")
    return "; ".join(parts)


def _print_json(value: Any) -> None:
    sys.stdout.write(json_text(value))
