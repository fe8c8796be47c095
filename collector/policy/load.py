"""A configuration file (YAML) to a checked `Policy`: the schema.

Everything that is wrong with a file is found here, before anything acts on it, and reported
together, each problem with file, line, key and what would be right. Needs neither root nor the
kernel; only `user:` names are looked up on this host. `docs/policy.md` is the reference of keys.

Imports PyYAML, so whoever must stay small imports this module only when it loads a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from collector.errors import PolicyError
from collector.policy import yamlnodes as nodes
from collector.policy.actionkeys import ACTION, COLLECT_KEYS, SUBKEYS, defaults, either, merged
from collector.policy.livingkeys import (
    ARM,
    ARM_SECTION,
    SNAPSHOT_LIMIT,
    TRACE,
    TRIGGER,
    WATCH,
    arm,
    check_memory,
)
from collector.policy.matchkeys import MATCH, match
from collector.policy.parsers import named, rule_name, section
from collector.policy.programkeys import DUMPER, HOOK, dumper
from collector.policy.redactkeys import PATTERN, check_regexes
from collector.policy.sections import SECTIONS
from collector.policy.sinks import OTLP
from collector.policy.types import (
    Action,
    CaptureSettings,
    DumperRule,
    HealthSettings,
    HoldSettings,
    Hook,
    KubernetesSettings,
    Policy,
    RecorderSettings,
    ReleaseSettings,
    Rule,
    SinkSettings,
    StoreSettings,
    Trace,
    Watch,
)
from collector.policy.yamlnodes import Document, Parser, PolicyErrors, Problem
from collector.signature.types import SignatureRules

__all__ = ["PolicyErrors", "keys", "load", "loads"]

_RULE: Mapping[str, Parser] = {"name": rule_name, "match": match, **ACTION}
_TOP: Mapping[str, Parser] = {
    **{name: section(fields) for name, fields in SECTIONS.items()},
    "defaults": defaults,
    "rules": named("rule", _RULE, "match", finish=either),
    "watch": named("watch rule", WATCH, "match"),
    "arm": section(ARM_SECTION),
    "trace": named("trace rule", TRACE, "match"),
    "dumpers": named("dumper", DUMPER, finish=dumper),
    "hooks": named("hook", HOOK, "exec"),
}


def load(path: Path) -> Policy:
    """The policy in a file. Raises PolicyErrors (a PolicyError) with everything wrong with it."""
    try:
        with path.open("rb") as file:
            data = file.read(nodes.MAX_BYTES + 1)
        if len(data) > nodes.MAX_BYTES:
            raise _unreadable(path, None, f"is larger than {nodes.MAX_BYTES >> 20} MiB")
        text = data.decode("utf-8")
    except OSError as error:
        raise _unreadable(path, None, f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise _unreadable(path, line, "is not UTF-8 text") from None
    return loads(text, str(path))


def loads(text: str, source: str) -> Policy:
    """The policy in a text; `source` is the file's name for messages. Raises PolicyErrors."""
    doc = Document(text, source)
    try:
        given = nodes.mapping(doc, doc.root, "", _TOP) if doc.root is not None else {}
    except Problem as problem:
        doc.problem(problem.node, problem.path, problem.text)
        given = {}
    check_memory(doc, given)
    check_regexes(doc)
    doc.raise_problems()
    return _policy(given, source)


def _unreadable(path: Path, line: int | None, problem: str) -> PolicyErrors:
    return PolicyErrors((PolicyError(path, line, None, problem),))


def keys() -> list[str]:
    """Every key of the schema by its path (`rules[].match.exe`); the reference covers each."""
    listed = []
    for name, fields in {**SECTIONS, "arm": ARM_SECTION}.items():
        listed += [f"{name}.{key}" for key in fields]
    for key in ACTION:
        listed.append(f"defaults.{key}")
        listed += [f"defaults.{key}.{sub}" for sub in SUBKEYS.get(key, {})]
    listed += [f"sinks.otlp.{key}" for key in OTLP]
    listed += ["rules[].name", "rules[].match"]
    listed += [f"rules[].match.{key}" for key in MATCH]
    listed += [f"rules[].collect.{key}" for key in COLLECT_KEYS]
    listed += [f"rules[].redact.patterns[].{key}" for key in PATTERN]
    listed += [f"watch[].{key}" for key in WATCH]
    listed += [f"arm.rules[].{key}" for key in ARM]
    listed += [f"watch[].triggers[].{key}" for key in TRIGGER]
    listed += [f"trace[].{key}" for key in TRACE]
    listed += [f"dumpers[].{key}" for key in DUMPER]
    listed += [f"hooks[].{key}" for key in HOOK]
    return listed + [f"watch[].triggers[].limit.{key}" for key in SNAPSHOT_LIMIT]


def _policy(given: dict[str, Any], source: str) -> Policy:
    base = Policy(source=source)
    release = replace(base.release, **given.get("release", {}))
    defaults = merged(Action(release=release.default), given.get("defaults", {}))
    rules = tuple(
        Rule(name=rule.pop("name"), match=rule.pop("match"), action=merged(defaults, rule))
        for rule in given.get("rules", ())
    )
    return Policy(
        source=source,
        store=StoreSettings(**given.get("store", {})),
        metrics_listen=given.get("metrics", {}).get("listen", base.metrics_listen),
        hold=HoldSettings(**given.get("hold", {})),
        release=ReleaseSettings(**given.get("release", {})),
        capture=CaptureSettings(**given.get("capture", {})),
        recorder=RecorderSettings(**given.get("recorder", {})),
        sinks=SinkSettings(**given.get("sinks", {})),
        health=HealthSettings(**given.get("health", {})),
        kubernetes=KubernetesSettings(**given.get("kubernetes", {})),
        defaults=defaults,
        rules=rules,
        watch=tuple(Watch(**rule) for rule in given.get("watch", ())),
        arm=arm(given.get("arm", {})),
        trace=tuple(Trace(**rule) for rule in given.get("trace", ())),
        dumpers=tuple(DumperRule(**rule) for rule in given.get("dumpers", ())),
        hooks=tuple(Hook(**rule) for rule in given.get("hooks", ())),
        signature=SignatureRules(**given.get("signature", {})),
    )
