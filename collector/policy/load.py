"""A configuration file (YAML) to a checked `Policy`: the schema.

Everything that is wrong with a file is found here, before anything acts on it, and reported
together, each problem with file, line, key and what would be right. Needs neither root nor the
kernel; only `user:` names are looked up on this host. `docs/policy.md` is the reference of keys.

Imports PyYAML, so whoever must stay small imports this module only when it loads a file.
"""

from __future__ import annotations

import grp
import ipaddress
import os
import pwd
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from msgspec.structs import replace

from collector.errors import PolicyError
from collector.model import Backend, Capture, Cause, Release, SnapshotMode
from collector.policy import podkeys
from collector.policy import yamlnodes as nodes
from collector.policy.opted import COLLECT
from collector.policy.sinks import OTLP, otlp
from collector.policy.types import (
    WATCH_MEMORY,
    Action,
    ArmRule,
    ArmSettings,
    CaptureSettings,
    Codec,
    Collect,
    Compress,
    Condition,
    DumperRule,
    HealthSettings,
    HoldSettings,
    Hook,
    KubernetesSettings,
    Limit,
    MappingKind,
    Match,
    MemoryChoice,
    Policy,
    RecorderSettings,
    ReleaseSettings,
    Routine,
    Rule,
    SinkSettings,
    StoreSettings,
    Takeover,
    Trace,
    Trigger,
    Watch,
)
from collector.policy.units import (
    did_you_mean,
    parse_duration,
    parse_signal,
    parse_size,
    quote,
    show_size,
)
from collector.policy.yamlnodes import Document, Parser, PolicyErrors, Problem
from collector.redact.ask import wrong
from collector.redact.types import MOST_GLOBS as MOST_GLOBS_REDACTED
from collector.redact.types import MOST_PATTERNS, MOST_REGEX, OWN_NAMES, Pattern, Redact
from collector.signature.types import MOST_GLOBS, MOST_OWN_FRAMES, SignatureRules

__all__ = ["PolicyErrors", "keys", "load", "loads"]

_PAGE = 4096
_MOST_ATTRIBUTES = 32
_VARIABLE_GLOB = 'a name of variables such as "*_TOKEN"'
_ARGUMENT_GLOB = 'a glob of arguments such as "--password"'
_VARIABLE = "the name of a variable such as RELEASE"
_MAX_PERIOD = 366 * 86400.0
_LEAST_AGE, _MOST_AGE = 3600.0, 10_000 * 86400.0
_MOST_RECORDS = 10_000_000
_LEAST_PATIENCE, _MOST_PATIENCE = 0.05, 60.0  # seconds
_LEAST_BIDS, _MOST_BIDS = 0.005, 1.0  # seconds
_LEAST_HELD, _MOST_HELD = 0.1, 3600.0
_LEAST_SHARED = 0.01  # seconds
_LONGEST_CAPTURE = 86400.0
_LONGEST_EXPLANATION = 3600.0
_LEAST_WITHIN, _MOST_WITHIN = 0.01, 1.5  # seconds; 2 s after the kill the kernel takes the memory
_MOST_ARMED = 1024
_SHORTEST, _MAX_EVERY = 0.01, 3600.0  # seconds between two samples
_MAX_STACK = 64 << 10  # bytes that BPF copies of a stack at most
_MAX_KEPT_CALLS, _MAX_KEPT_TEXT = 64, 64  # CW_KEPT_CALLS, CW_KEPT_TEXT in bpf/trace.h
_LONGEST_SOCKET = 107  # bytes of a path, unix(7)
_GLOB = re.compile(r"[*?/\[]")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252})")


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
    _check_memory(doc, given)
    _check_regexes(doc)
    doc.raise_problems()
    return _policy(given, source)


def _unreadable(path: Path, line: int | None, problem: str) -> PolicyErrors:
    return PolicyErrors((PolicyError(path, line, None, problem),))


def keys() -> list[str]:
    """Every key of the schema by its path (`rules[].match.exe`); the reference covers each."""
    listed = []
    for section, fields in {**_SECTIONS, "arm": _ARM_SECTION}.items():
        listed += [f"{section}.{key}" for key in fields]
    for key in _ACTION:
        listed.append(f"defaults.{key}")
        listed += [f"defaults.{key}.{sub}" for sub in _SUBKEYS.get(key, {})]
    listed += [f"sinks.otlp.{key}" for key in OTLP]
    listed += ["rules[].name", "rules[].match"]
    listed += [f"rules[].match.{key}" for key in _MATCH]
    listed += [f"rules[].collect.{key}" for key in _COLLECT]
    listed += [f"rules[].redact.patterns[].{key}" for key in _PATTERN]
    listed += [f"watch[].{key}" for key in _WATCH]
    listed += [f"arm.rules[].{key}" for key in _ARM]
    listed += [f"watch[].triggers[].{key}" for key in _TRIGGER]
    listed += [f"trace[].{key}" for key in _TRACE]
    listed += [f"dumpers[].{key}" for key in _DUMPER]
    listed += [f"hooks[].{key}" for key in _HOOK]
    return listed + [f"watch[].triggers[].limit.{key}" for key in _SNAPSHOT_LIMIT]


# What single values may be


def _absolute_path(doc: Document, node: yaml.Node, path: str) -> Path:
    value = PurePosixPath(nodes.text(doc, node, path))
    if not value.is_absolute() or ".." in value.parts or len(value.parts) < 2:
        raise Problem(node, path, f"{quote(str(value))} is not an absolute path of a directory")
    return Path(value)


def _root(doc: Document, node: yaml.Node, path: str) -> str:
    if isinstance(node, yaml.ScalarNode) and node.value == "/":
        return "/"
    return str(_absolute_path(doc, node, path))


def _socket(doc: Document, node: yaml.Node, path: str) -> Path | None:
    if nodes.is_off(node):
        return None
    found = _absolute_path(doc, node, path)
    if len(os.fsencode(found)) > _LONGEST_SOCKET:
        raise Problem(node, path, f"expected a path of at most {_LONGEST_SOCKET} bytes")
    return found


def _listen(doc: Document, node: yaml.Node, path: str) -> tuple[str, int] | None:
    if nodes.is_off(node):
        return None
    right = 'expected address:port such as "127.0.0.1:9836", or off'
    value = nodes.scalar(node, path, right)
    host, colon, port = value.rpartition(":")
    if not colon or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise Problem(node, path, f"{quote(value)} has no port from 0 to 65535; {right}")
    if not host:
        every = f'"0.0.0.0:{port}" listens on every interface, "127.0.0.1:{port}" on this host'
        raise Problem(node, path, f"{quote(value)} has no address; {every}")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        ipaddress.IPv6Address(bare) if ":" in host or bare != host else None
    except ValueError:
        raise Problem(node, path, f"{quote(host)} is not an IPv6 address; {right}") from None
    if ":" in host and bare == host:
        raise Problem(node, path, f'write an IPv6 address in brackets: "[{host}]:{port}"')
    if ":" not in host and not _HOST.fullmatch(host):
        raise Problem(node, path, f"{quote(host)} is not an address; {right}")
    return bare, int(port)


def _mapping_glob(doc: Document, node: yaml.Node, path: str) -> str:
    value = nodes.text(doc, node, path)
    kinds = [str(kind) for kind in MappingKind]
    if value.strip("[]") in kinds and value not in kinds:
        raise Problem(node, path, f"write the kind without brackets: {value.strip('[]')}")
    if value.startswith("[") and not value.startswith("[["):
        right = f'"[{value[:1]}]{value[1:]}"'
        raise Problem(node, path, f"brackets are a character class in a glob; write {right}")
    if value not in kinds and not _GLOB.search(value):
        near = did_you_mean(value, kinds)
        raise Problem(
            node, path, f"{quote(value)} is neither a path glob nor one of {', '.join(kinds)}{near}"
        )
    return value


def _choices(doc: Document, node: yaml.Node, path: str) -> tuple[str, ...]:
    """A list of mapping globs; an empty one lifts what the defaults list."""
    if isinstance(node, yaml.SequenceNode) and not node.value:
        return ()
    return nodes.items(doc, node, path, _mapping_glob)


def _attributes(doc: Document, node: yaml.Node, path: str) -> tuple[str, ...]:
    """A list of names of variables; an empty one lifts what the defaults list."""
    if isinstance(node, yaml.SequenceNode) and not node.value:
        return ()
    found: tuple[str, ...] = nodes.items(doc, node, path, nodes.written(_variable, _VARIABLE))
    if len(found) > _MOST_ATTRIBUTES:
        raise Problem(node, path, f"expected at most {_MOST_ATTRIBUTES} names")
    return found


def _variable(text: str) -> str:
    if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]{0,63}", text):
        raise ValueError(f"{quote(text)}: expected {_VARIABLE}")
    return text


def _listed(what: str, such: str, parse: Callable[[str], str]) -> Parser:
    """Parser of a list of globs; an empty one lifts what the defaults list."""

    def parse_list(doc: Document, node: yaml.Node, path: str) -> tuple[str, ...]:
        if isinstance(node, yaml.SequenceNode) and not node.value:
            return ()
        found: tuple[str, ...] = nodes.items(doc, node, path, nodes.written(parse, such))
        if len(found) > MOST_GLOBS_REDACTED:
            raise Problem(node, path, f"expected at most {MOST_GLOBS_REDACTED} {what}")
        return found

    return parse_list


def _variable_glob(text: str) -> str:
    if not re.fullmatch("[A-Za-z0-9_*?]{1,128}", text):
        raise ValueError(f"{quote(text)}: expected {_VARIABLE_GLOB}")
    return text


def _argument_glob(text: str) -> str:
    if not 1 <= len(text) <= 256 or not text.isprintable():
        raise ValueError(f"{quote(text)}: expected {_ARGUMENT_GLOB}, at most 256 characters")
    return text


def _patterns(doc: Document, node: yaml.Node, path: str) -> tuple[Pattern, ...]:
    """Regular expressions with names, which RE2 must take: all of them at a time."""
    if isinstance(node, yaml.SequenceNode) and len(node.value) > MOST_PATTERNS:
        raise Problem(node, path, f"expected at most {MOST_PATTERNS} patterns")
    found: tuple[Pattern, ...] = _NAMED_PATTERNS(doc, node, path)
    return found


def _pattern(doc: Document, node: yaml.Node, path: str, given: dict[str, Any]) -> Pattern | None:
    if given.get("name") in OWN_NAMES:
        where = _present(node)["name"]
        doc.problem(where, f"{path}.name", f"expected another name than {', '.join(OWN_NAMES)}")
    return Pattern(**given) if given.keys() == _PATTERN.keys() else None


def _regex(doc: Document, node: yaml.Node, path: str) -> str:
    text = nodes.text(doc, node, path)
    if len(text) > MOST_REGEX:
        raise Problem(node, path, f"expected at most {MOST_REGEX} characters")
    doc.regexes.append((node, path, text))
    return text


def _check_regexes(doc: Document) -> None:
    """All at a time, by a process that has the engine."""
    found = wrong([text for _, _, text in doc.regexes]) if doc.regexes else []
    for (node, path, text), problem in zip(doc.regexes, found, strict=True):
        if problem is not None:
            doc.problem(node, path, f"{quote(text)}: {problem}")


def _logs(doc: Document, node: yaml.Node, path: str) -> int | None:
    if nodes.is_off(node):
        return None
    lines: int = nodes.integer(1, 1000, "a number of lines (or off)")(doc, node, path)
    return lines


def _memory_max(doc: Document, node: yaml.Node, path: str) -> int | None:
    if nodes.is_off(node):
        return None
    size: int = _SIZE(doc, node, path)
    if size < _PAGE:
        raise Problem(node, path, "is less than a page (4KiB); to keep no memory: capture: threads")
    return size


def _coredump_filter(doc: Document, node: yaml.Node, path: str) -> int | None:
    if nodes.is_off(node):
        return None
    right = "expected hexadecimal bits from 0x0 to 0x1ff such as 0x33 (core(5)), or none"
    value = nodes.scalar(node, path, right)
    if not re.fullmatch("0x[0-9a-fA-F]{1,8}", value) or int(value, 16) > 0x1FF:
        raise Problem(node, path, f"{quote(value)}: {right}")
    return int(value, 16)


def _size_or_auto(doc: Document, node: yaml.Node, path: str) -> int | None:
    if isinstance(node, yaml.ScalarNode) and node.value == "auto":
        return None
    size: int = _SIZE(doc, node, path)
    return size


def _compress(doc: Document, node: yaml.Node, path: str) -> dict[str, Any]:
    if isinstance(node, yaml.ScalarNode):
        return {"codec": Codec.NONE if nodes.is_off(node) else _CODEC(doc, node, path)}
    return nodes.mapping(doc, node, path, _COMPRESS)


def _limit(doc: Document, node: yaml.Node, path: str) -> dict[str, Any] | None:
    if nodes.is_off(node):
        return None
    if isinstance(node, yaml.ScalarNode):
        right = "expected keys (captures, period, fallback), or none"
        raise Problem(node, path, f"{right}, not {nodes.describe(node)}")
    return nodes.mapping(doc, node, path, _LIMIT)


def _collect(doc: Document, node: yaml.Node, path: str) -> dict[str, Any] | None:
    if nodes.is_off(node):
        return None
    if isinstance(node, yaml.ScalarNode):
        right = "expected keys (first, then, times, after, period), or none"
        raise Problem(node, path, f"{right}, not {nodes.describe(node)}")
    return nodes.mapping(doc, node, path, _COLLECT)


def _either(doc: Document, node: yaml.Node, path: str, given: dict[str, Any]) -> dict[str, Any]:
    """`capture` is one amount, `collect` several: a rule, or the defaults, say one of them."""
    if "capture" in given and given.get("collect") is not None:
        where = _present(node)["collect"]
        doc.problem(where, f"{path}.collect", "give either capture or collect, not both")
    return given


def _defaults(doc: Document, node: yaml.Node, path: str) -> dict[str, Any]:
    return _either(doc, node, path, nodes.mapping(doc, node, path, _ACTION))


def _period(text: str) -> float:
    seconds = parse_duration(text)
    if seconds > _MAX_PERIOD:
        raise ValueError(f"expected a duration of at most a year, not {quote(text)}")
    return seconds


def _age(text: str) -> float:
    seconds = parse_duration(text)
    if not _LEAST_AGE <= seconds <= _MOST_AGE:
        raise ValueError(f"expected a duration from 1h to 10000d, not {quote(text)}")
    return seconds


def _fallback(doc: Document, node: yaml.Node, path: str) -> Capture:
    if nodes.is_off(node):
        raise Problem(node, path, "a death beyond the limit is at least recorded: record")
    capture: Capture = _SMALLER(doc, node, path)
    return capture


def _user(doc: Document, node: yaml.Node, path: str) -> int:
    name = nodes.scalar(node, path, "a user name")
    if name.isdigit():
        raise Problem(node, path, f"{quote(name)} is a number; write uid: {name[:12]}")
    try:
        return pwd.getpwnam(name).pw_uid
    except (KeyError, ValueError):
        raise Problem(node, path, f"no user {quote(name)} on this host") from None


def _takeover(doc: Document, node: yaml.Node, path: str) -> Takeover:
    if isinstance(node, yaml.ScalarNode):
        if node.value in (Takeover.KEEP, Takeover.YIELD):
            return Takeover(node.value)
        if node.tag == "tag:yaml.org,2002:bool":
            return Takeover.YIELD if nodes.boolean(doc, node, path) else Takeover.NO
    right = "expected true, false, keep or yield"
    raise Problem(node, path, f"{right}, not {nodes.describe(node)}")


def _group(doc: Document, node: yaml.Node, path: str) -> int | None:
    if nodes.is_off(node):
        return None
    name = nodes.scalar(node, path, "the name of a group, or none")
    try:
        return grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):
        raise Problem(node, path, f"no group {quote(name)} on this host") from None


def _rule_name(doc: Document, node: yaml.Node, path: str) -> str:
    name = nodes.text(doc, node, path)
    if len(name) > 64 or not name.isprintable() or name != name.strip():
        raise Problem(node, path, "must be at most 64 printable characters, no space at the ends")
    if name == COLLECT:
        raise Problem(node, path, f'"{COLLECT}" is reserved for what pods say')
    if name == "defaults":
        raise Problem(node, path, '"defaults" is reserved for deaths that no rule matches')
    return name


_SIZE = nodes.written(parse_size, "a size such as 512MiB")
_CODEC = nodes.choice({str(codec): codec for codec in Codec})
_RELEASE = nodes.choice({str(r): r for r in (Release.INSTANT, Release.AFTER_WRITE)})
_SMALLER = nodes.choice({str(c): c for c in (Capture.STACKS, Capture.THREADS, Capture.RECORD)})


# Sections


def _section(fields: Mapping[str, Parser]) -> Parser:
    return partial(_mapping_of, fields=fields)


def _mapping_of(
    doc: Document, node: yaml.Node, path: str, fields: Mapping[str, Parser]
) -> dict[str, Any]:
    return nodes.mapping(doc, node, path, fields)


def _any_of(parse: Parser) -> Parser:
    def parse_items(doc: Document, node: yaml.Node, path: str) -> tuple[Any, ...]:
        return nodes.items(doc, node, path, parse)

    return parse_items


def _match(doc: Document, node: yaml.Node, path: str) -> Match:
    given = nodes.mapping(doc, node, path, _MATCH)
    if nodes.is_null(node) or not node.value:
        raise Problem(node, path, "no condition; what holds for every death belongs in `defaults`")
    if "uid" in given and "user" in given:
        raise Problem(node, path, "give either uid or user, not both")
    if "user" in given:
        given["uid"] = given.pop("user")
    if given.get("cause") == (Cause.EXIT,) and "signal" in given:
        raise Problem(node, path, "never matches: an exit has no signal")
    return Match(**given)


Finish = Callable[[Document, yaml.Node, str, dict[str, Any]], Any]


def _named(
    kind: str, fields: Mapping[str, Parser], *needed: str, finish: Finish | None = None
) -> Parser:
    """Parser of a list of mappings that each have a name, no two the same.

    finish: makes more of a member than its checked values; takes its node as well.
    """

    def parse(doc: Document, node: yaml.Node, path: str) -> tuple[Any, ...]:
        if nodes.is_null(node):
            return ()
        if not isinstance(node, yaml.SequenceNode):
            raise Problem(node, path, f"expected a list of {kind}s, not {nodes.describe(node)}")
        found = []
        lines: dict[str | None, int] = {}
        for index, one_node in enumerate(node.value):
            where = f"{path}[{index}]"
            one, good = doc.attempt(_section(fields), one_node, where)
            if not good:
                continue
            present = _present(one_node)
            for key in ("name", *needed):
                if key not in present:
                    doc.problem(one_node, where, f"has no `{key}`")
            line = one_node.start_mark.line + 1
            name = one.get("name")
            if name is None or name not in lines:
                lines[name] = line
            else:
                at = f"the {kind} on line {lines[name]}"
                doc.problem(present["name"], f"{where}.name", f"{quote(name)} is the name of {at}")
            found.append(one if finish is None else finish(doc, one_node, where, one))
        return tuple(one for one in found if one is not None)

    return parse


def _living(doc: Document, node: yaml.Node, path: str) -> Match:
    """The match of a rule for processes that live: what is known of these."""
    given = _present(node)
    for key in ("signal", "cause"):
        if key in given:
            raise Problem(given[key], f"{path}.{key}", "a process that lives has none")
    return _match(doc, node, path)


def _calls(text: str) -> str:
    from collector.arch.call_sets import wanted  # noqa: PLC0415 - few policies have such rules

    wanted([text])
    return text


def _between(least: float, most: float, words: str, such: str) -> Parser:
    """A duration in seconds, with its bounds. words, such: bounds and an example for people."""

    def parse(text: str) -> float:
        seconds = parse_duration(text)
        if not least <= seconds <= most:
            raise ValueError(f"expected a duration from {words}, not {quote(text)}")
        return seconds

    return nodes.written(parse, f"a duration such as {such}")


def _shared(text: str) -> float:
    seconds = parse_duration(text)
    if not _LEAST_SHARED <= seconds <= _MOST_PATIENCE:
        raise ValueError("expected a duration from 10ms to 1m")
    return seconds


def _stack(text: str) -> int:
    size = parse_size(text)
    if not _PAGE <= size <= _MAX_STACK:
        raise ValueError(f"expected a size from 4KiB to 64KiB, not {quote(text)}")
    return size


def _cpus(text: str) -> float:
    right = "expected a share of one CPU such as 90%, or 150% for one and a half"
    if not re.fullmatch("[0-9]{1,6}%", text) or text == "0%":
        raise ValueError(f"{quote(text)}: {right}")
    return int(text[:-1]) / 100


def _part(text: str) -> float:
    if not re.fullmatch("[1-9][0-9]?%", text):
        raise ValueError(f"{quote(text)}: expected a share, 1% to 99%")
    return int(text[:-1]) / 100


def _size_or_part(doc: Document, node: yaml.Node, path: str) -> int | float | None:
    """Bytes, or a share of the file system as a float; None: no limit."""
    if nodes.is_off(node):
        return None
    value = nodes.scalar(node, path, "a size such as 20GiB, a share such as 10%, or none")
    parse = _PART if value.endswith("%") else _SIZE
    found: int | float = parse(doc, node, path)
    return found


def _or_none(parse: Parser) -> Parser:
    """The same, or None where no limit is wanted."""

    def parse_or_none(doc: Document, node: yaml.Node, path: str) -> Any:
        return None if nodes.is_off(node) else parse(doc, node, path)

    return parse_or_none


def _share(text: str) -> float:
    if not re.fullmatch("[0-9]{1,2}%", text):
        raise ValueError(f"{quote(text)}: expected a share of free memory, 0% to 99%")
    return int(text[:-1]) / 100


def _trigger(doc: Document, node: yaml.Node, path: str, given: dict[str, Any]) -> Trigger | None:
    """A trigger has exactly one condition, and only the keys that go with it."""
    present = _present(node)
    conditions = [condition for condition in Condition if condition.value in present]
    if len(conditions) != 1:
        known = ", ".join(condition.value for condition in Condition)
        found = " and ".join(condition.value for condition in conditions) or "none"
        doc.problem(node, path, f"expected exactly one condition out of {known}; it has {found}")
        return None
    condition = conditions[0]
    if "for" in present and condition in _IN_SECONDS:
        doc.problem(present["for"], f"{path}.for", f"`{condition.value}` is a duration already")
    if "threads" in present and condition not in _OF_A_THREAD:
        doc.problem(
            present["threads"], f"{path}.threads", f"`{condition.value}` is of the whole process"
        )
    if "name" not in given or condition.value not in given:
        return None  # reported already
    limit = given.get("limit", {})
    plain = {key: given[key] for key in ("threads", "mode", "capture") if key in given}
    return Trigger(
        name=given["name"],
        condition=condition,
        above=float(given[condition.value]),
        lasting=given.get("for", 0.0),
        **plain,
        **limit,
    )


def _command(doc: Document, node: yaml.Node, path: str) -> tuple[str, ...]:
    """A program and its arguments, which no shell sees."""
    words: tuple[str, ...] = nodes.items(doc, node, path, nodes.text)
    if words and not PurePosixPath(words[0]).is_absolute():
        raise Problem(node, path, f"{quote(words[0])}: expected the absolute path of a program")
    return words


def _dumper_name(text: str) -> str:
    if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9_.:@-]{0,63}", text):
        raise ValueError("expected up to 64 letters, digits and any of _.:@-")
    return text


def _function_globs(doc: Document, node: yaml.Node, path: str) -> tuple[str, ...]:
    if isinstance(node, yaml.SequenceNode) and len(node.value) > MOST_GLOBS:
        raise Problem(node, path, f"expected at most {MOST_GLOBS} globs, not {len(node.value)}")
    if isinstance(node, yaml.SequenceNode) and not node.value:
        return ()
    return nodes.items(doc, node, path, nodes.written(_function_glob, "a glob of functions"))


def _function_glob(text: str) -> str:
    if not text.strip("*?! ") or len(text) > 200:
        right = 'expected a glob of function names such as "my_fatal*", at most 200 characters'
        raise ValueError(f"{quote(text)}: {right}; all functions are none")
    return text


def _module(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][\w.]{0,255}:[A-Za-z_]\w{0,63}", text):
        raise ValueError(f"{quote(text)}: expected package.module:name")
    return text


def _refuse_pods(doc: Document, node: yaml.Node | None, path: str) -> None:
    """A dumper is asked by what it has registered with, which knows nothing of pods."""
    given = {} if node is None else _present(node)
    for key in podkeys.OF_PODS:
        if key in given:
            right = "a dumper is not chosen by pod; its probe() may look at `cgroup`"
            doc.problem(given[key], f"{path}.{key}", right)


def _dumper(
    doc: Document, node: yaml.Node, path: str, given: dict[str, Any]
) -> dict[str, Any] | None:
    """A dumper is named in one way, and asked about deaths that the kernel hands over."""
    present = _present(node)
    if "module" in present and "entry_point" in present:
        doc.problem(node, path, "give either module or entry_point, not both")
    _refuse_pods(doc, present.get("match"), f"{path}.match")
    match = given.get("match")
    if match is not None and not {Cause.SIGNAL, Cause.KILLED} >= set(match.cause or ()):
        where = _present(present["match"])["cause"]
        doc.problem(where, f"{path}.match.cause", "expected signal or killed: others leave nothing")
    return given


def _present(node: yaml.Node) -> dict[str, yaml.Node]:
    """The keys that a mapping node has, whether or not their values were good."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return {key.value: value for key, value in pairs if isinstance(key, yaml.ScalarNode)}


_MEMORY: Mapping[str, Parser] = {
    "max": _memory_max,
    "include": _choices,
    "exclude": _choices,
    "dontdump": nodes.boolean,
    "coredump_filter": _coredump_filter,
}
_COMPRESS: Mapping[str, Parser] = {
    "codec": _CODEC,
    "level": nodes.integer(1, 19, "a level"),
    "workers": nodes.integer(1, 64, "a number of threads"),
}
_LIMIT: Mapping[str, Parser] = {
    "captures": nodes.integer(0, 10_000, "a number of captures"),
    "period": nodes.written(_period, "a duration such as 1h"),
    "fallback": _fallback,
}
_KEPT = nodes.choice({str(c): c for c in Capture if c is not Capture.NONE})
_COLLECT: Mapping[str, Parser] = {
    "first": _KEPT,
    "then": _KEPT,
    "times": nodes.integer(0, 10_000, "a number of deaths"),
    "after": _KEPT,
    "period": nodes.written(_period, "a duration such as 1d"),
}
_PATTERN: Mapping[str, Parser] = {
    "name": _rule_name,
    "regex": _regex,
}
_NAMED_PATTERNS = _named("pattern", _PATTERN, "regex", finish=_pattern)
_REDACT: Mapping[str, Parser] = {
    "environment": _listed("names", _VARIABLE_GLOB, _variable_glob),
    "arguments": _listed("globs", _ARGUMENT_GLOB, _argument_glob),
    "patterns": _patterns,
    "mappings": _choices,
    "time": _between(1.0, 3600.0, "1s to 1h", "1m"),
}
_SUBKEYS = {"memory": _MEMORY, "compress": _COMPRESS, "limit": _LIMIT, "redact": _REDACT}
_ACTION: Mapping[str, Parser] = {
    "capture": nodes.choice({str(capture): capture for capture in Capture}),
    "collect": _collect,
    "memory": _section(_MEMORY),
    "release": _RELEASE,
    "compress": _compress,
    "limit": _limit,
    "routine": nodes.choice({str(routine): routine for routine in Routine}),
    "honour_rlimit": nodes.boolean,
    "attributes": _attributes,
    "redact": _section(_REDACT),
    "logs": _logs,
}
_MATCH: Mapping[str, Parser] = {
    "exe": _any_of(nodes.text),
    "comm": _any_of(nodes.text),
    "cgroup": _any_of(nodes.text),
    "unit": _any_of(nodes.text),
    "uid": _any_of(nodes.integer(0, (1 << 32) - 2, "a uid")),
    "user": _any_of(_user),
    "signal": _any_of(nodes.written(parse_signal, "a signal such as SIGSEGV")),
    "cause": _any_of(nodes.choice({str(cause): cause for cause in Cause})),
    "container": nodes.boolean,
    **podkeys.MATCH,
}
_RULE: Mapping[str, Parser] = {"name": _rule_name, "match": _match, **_ACTION}
_PART = nodes.written(_part, "a share such as 10%")
_DURATION = nodes.written(parse_duration, "a duration such as 30s")
_SNAPSHOT_LIMIT: Mapping[str, Parser] = {
    "snapshots": nodes.integer(1, 10_000, "a number of snapshots"),
    "period": nodes.written(_period, "a duration such as 1h"),
}
_IN_SECONDS = (Condition.UNINTERRUPTIBLE, Condition.BLOCKED, Condition.NO_PROGRESS)
_OF_A_THREAD = (Condition.UNINTERRUPTIBLE, Condition.BLOCKED)
_TRIGGER: Mapping[str, Parser] = {
    "name": _rule_name,
    Condition.UNINTERRUPTIBLE: _DURATION,
    Condition.BLOCKED: _DURATION,
    Condition.NO_PROGRESS: _DURATION,
    Condition.RESIDENT: _SIZE,
    Condition.DESCRIPTORS: nodes.integer(1, 1 << 30, "a number of descriptors"),
    Condition.CPU: nodes.written(_cpus, "a share of one CPU such as 90%"),
    Condition.MEMORY: nodes.written(_part, "a share such as 90%"),
    Condition.MEMORY_HIGH: nodes.integer(1, 1 << 30, "a number of events a second"),
    Condition.PRESSURE: nodes.written(_part, "a share such as 20%"),
    "for": _DURATION,
    "threads": _any_of(nodes.text),
    "mode": nodes.choice({mode.value: mode for mode in SnapshotMode}),
    "capture": nodes.choice({c.value: c for c in (Capture.FULL, Capture.STACKS, Capture.THREADS)}),
    "limit": _section(_SNAPSHOT_LIMIT),
}
_WATCH: Mapping[str, Parser] = {
    "name": _rule_name,
    "match": _living,
    "every": _between(_SHORTEST, _MAX_EVERY, "10ms to 1h", "1s"),
    "keep": nodes.integer(1, 100_000, "a number of samples"),
    "memory": _SIZE,
    "stack": nodes.written(_stack, "a size such as 16KiB"),
    "triggers": _named("trigger", _TRIGGER, finish=_trigger),
}
_ARM: Mapping[str, Parser] = {
    "name": _rule_name,
    "match": _living,
    "on": _any_of(nodes.choice({str(c): c for c in (Cause.KILLED, Cause.OOM, Cause.EXIT)})),
    "capture": nodes.choice({str(c): c for c in (Capture.FULL, Capture.STACKS, Capture.THREADS)}),
    "within": _between(_LEAST_WITHIN, _MOST_WITHIN, "10ms to 1500ms", "300ms"),
    "children": nodes.boolean,
}
_ARM_SECTION: Mapping[str, Parser] = {
    "max": nodes.integer(1, _MOST_ARMED, "a number of processes"),
    "rules": _named("arm rule", _ARM, "match"),
}
_TRACE: Mapping[str, Parser] = {
    "name": _rule_name,
    "match": _living,
    "calls": nodes.integer(1, _MAX_KEPT_CALLS, "a number of calls"),
    "strings": nodes.integer(0, _MAX_KEPT_TEXT, "a number of bytes"),
    "include": _any_of(nodes.written(_calls, "a system call, or a set such as %file")),
    "exclude": _any_of(nodes.written(_calls, "a system call, or a set such as %file")),
}
_DUMPER: Mapping[str, Parser] = {
    "name": nodes.written(_dumper_name, "a name"),
    "module": nodes.written(_module, "package.module:name"),
    "entry_point": nodes.text,
    "match": _match,
    "pin": nodes.boolean,
    "timeout": _between(_LEAST_HELD, _MOST_HELD, "100ms to 1h", "30s"),
    "user": _user,
    "memory": _SIZE,
}
_HOOK: Mapping[str, Parser] = {
    "name": _rule_name,
    "match": _match,
    "exec": _command,
    "user": _user,
    "timeout": _between(_LEAST_HELD, _MOST_HELD, "100ms to 1h", "30s"),
}
_SECTIONS: Mapping[str, Mapping[str, Parser]] = {
    "store": {
        "path": _absolute_path,
        "min_free": _SIZE,
        "max_size": _size_or_part,
        "max_records": _or_none(nodes.integer(1, _MOST_RECORDS, "a number of records")),
        "max_age": _or_none(nodes.written(_age, "a duration such as 90d")),
        "max_core_age": _or_none(nodes.written(_age, "a duration such as 14d")),
        "keep_free": _size_or_part,
        "service_max_size": _or_none(_SIZE),
        "service_max_records": _or_none(nodes.integer(1, _MOST_RECORDS, "a number of records")),
    },
    "metrics": {"listen": _listen},
    "hold": {
        "backend": nodes.choice({str(backend): backend for backend in Backend}),
        "takeover": _takeover,
        "patience": _between(_LEAST_PATIENCE, _MOST_PATIENCE, "50ms to 1m", "100ms"),
        "bids": _between(_LEAST_BIDS, _MOST_BIDS, "5ms to 1s", "50ms"),
        "max": _between(_LEAST_HELD, _MOST_HELD, "100ms to 1h", "30s"),
        "group": _group,
    },
    "release": {
        "default": _RELEASE,
        "max_pinned": _size_or_auto,
        "max_pins": nodes.integer(1, 1024, "a number of pins"),
        "copy": nodes.written(_share, "a share such as 50%"),
        "shared": nodes.written(_shared, "a duration such as 50ms"),
        "lend": nodes.boolean,
    },
    "capture": {
        "workers": nodes.integer(1, 64, "a number of workers"),
        "queue": nodes.integer(1, 100_000, "a number of captures"),
        "max_time": _between(1.0, _LONGEST_CAPTURE, "1s to 1d", "10m"),
        "max_read": _size_or_auto,
        "explain_time": _between(1.0, _LONGEST_EXPLANATION, "1s to 1h", "20s"),
    },
    "signature": {
        "sentinels": _function_globs,
        "irrelevant": _function_globs,
        "prefixes": _function_globs,
        "common": _function_globs,
        "frames": nodes.integer(1, MOST_OWN_FRAMES, "a number of functions"),
    },
    "recorder": {
        "memory": _SIZE,
        "processes": nodes.integer(1, 10_000, "a number of processes"),
    },
    "sinks": {"journal": nodes.boolean, "otlp": otlp},
    "health": {"socket": _socket, "group": _group},
    "kubernetes": {"root": _root, "default": podkeys.DEFAULT},
}
_TOP: Mapping[str, Parser] = {
    **{name: _section(fields) for name, fields in _SECTIONS.items()},
    "defaults": _defaults,
    "rules": _named("rule", _RULE, "match", finish=_either),
    "watch": _named("watch rule", _WATCH, "match"),
    "arm": _section(_ARM_SECTION),
    "trace": _named("trace rule", _TRACE, "match"),
    "dumpers": _named("dumper", _DUMPER, finish=_dumper),
    "hooks": _named("hook", _HOOK, "exec"),
}


def _check_memory(doc: Document, given: dict[str, Any]) -> None:
    """A rule whose processes need more than the recorder may have would never watch any."""
    most = given.get("recorder", {}).get("memory", RecorderSettings().memory)
    rules = given.get("watch", ())
    written = _present(doc.root)["watch"].value if rules and doc.root is not None else ()
    if len(written) != len(rules):  # one of them is wrong, and that is said
        return
    for index, (rule, node) in enumerate(zip(rules, written, strict=True)):
        size = rule.get("memory", WATCH_MEMORY)
        if size > most:
            have = f"recorder.memory, {show_size(most)} for all processes"
            where = _present(node).get("memory", node)
            problem = f"expected at most {have}, not {show_size(size)}"
            doc.problem(where, f"watch[{index}].memory", problem)


# From checked values to the policy


def _policy(given: dict[str, Any], source: str) -> Policy:
    base = Policy(source=source)
    release = replace(base.release, **given.get("release", {}))
    defaults = _merged(Action(release=release.default), given.get("defaults", {}))
    rules = tuple(
        Rule(name=rule.pop("name"), match=rule.pop("match"), action=_merged(defaults, rule))
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
        arm=_arm(given.get("arm", {})),
        trace=tuple(Trace(**rule) for rule in given.get("trace", ())),
        dumpers=tuple(DumperRule(**rule) for rule in given.get("dumpers", ())),
        hooks=tuple(Hook(**rule) for rule in given.get("hooks", ())),
        signature=SignatureRules(**given.get("signature", {})),
    )


def _arm(given: dict[str, Any]) -> ArmSettings:
    rules = tuple(ArmRule(**rule) for rule in given.get("rules", ()))
    return ArmSettings(**{**given, "rules": rules})


def _merged(base: Action, given: dict[str, Any]) -> Action:
    """The action with the given settings over the base, key by key and sub-key by sub-key."""
    changed = dict(given)
    if "memory" in given:
        memory: MemoryChoice = replace(base.memory, **given["memory"])
        changed["memory"] = memory
    if "compress" in given:
        compress: Compress = replace(base.compress, **given["compress"])
        changed["compress"] = compress
    if "redact" in given:
        redact: Redact = replace(base.redact, **given["redact"])
        changed["redact"] = redact
    if given.get("collect") is not None:
        collect = replace(base.collect or Collect(), **given["collect"])
        changed.update(collect=collect, capture=collect.first)
    elif "capture" in given:
        changed["collect"] = None  # the amount that this rule says is for each death
    if given.get("limit") is not None:
        below = base.limit or Action().limit
        assert isinstance(below, Limit)  # the built-in default is a limit
        changed["limit"] = replace(below, **given["limit"])
    return replace(base, **changed)
