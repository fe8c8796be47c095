"""A configuration file becomes a whole policy, or one line per thing that is wrong with it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.errors import PolicyError
from collector.model import Backend, Capture, Cause, Release, SnapshotMode
from collector.policy.load import PolicyErrors, keys, load, loads
from collector.policy.types import (
    Action,
    ArmRule,
    ArmSettings,
    CaptureSettings,
    Codec,
    Compress,
    Condition,
    HoldSettings,
    Hook,
    Limit,
    Match,
    MemoryChoice,
    Policy,
    RecorderSettings,
    ReleaseSettings,
    Rule,
    StoreSettings,
    Takeover,
    Trigger,
    Watch,
)

EVERYTHING = """\
store: {path: /srv/cores, min_free: 10GB}
metrics: {listen: "[::1]:9000"}
hold: {backend: pipe, takeover: keep}
release: {default: after-write, max_pinned: 1.5GiB, max_pins: 3}
capture: {workers: 4, queue: 8}
defaults:
  capture: stacks
  memory: {max: 512MiB, include: file, exclude: [shm, "/dev/shm/*"], coredump_filter: 0x33}
  compress: {level: 3, workers: 2}
  limit: {captures: 2, period: 30s, fallback: threads}
  honour_rlimit: true
recorder: {memory: 1GiB, processes: 2}
rules:
  - name: everything
    match:
      exe: ["/usr/bin/*", /bin/sh]
      comm: sh
      cgroup: /a/*
      unit: "*.service"
      uid: [0, 1000]
      signal: [SIGSEGV, abrt, 7, SIGRTMIN+3]
      cause: [signal, killed]
      container: false
    capture: full
    memory: {max: none, exclude: [], dontdump: true, coredump_filter: none}
    release: instant
    compress: none
    limit: none
  - name: some
    match: {user: root, cause: exit}
    limit: {captures: 0}
watch:
  - name: all
    match: {comm: [a, b], uid: 7, container: true}
    every: 250ms
    keep: 5
    memory: 1MiB
    stack: 64KiB
    triggers:
      - {name: d, uninterruptible: 10s, threads: io*, mode: auto}
      - {name: b, blocked: 1m, capture: threads}
      - {name: n, no-progress: 2m, mode: nonstop}
      - {name: r, resident: 1GiB, for: 5s, mode: full-stop, capture: full}
      - {name: f, descriptors: 100}
      - {name: c, cpu: 150%, for: 30s, limit: {snapshots: 3, period: 5m}}
      - {name: m, memory: 90%}
      - {name: h, memory-high: 10}
      - {name: p, pressure: 20%, for: 3s}
  - name: bare
    match: {exe: /bin/x}
"""


def test_every_key_reaches_its_place_and_rules_lie_over_the_defaults() -> None:
    # GIVEN a file that uses every key of the schema
    # WHEN it is loaded
    policy = loads(EVERYTHING, "x.yaml")

    # THEN the policy says the same, merged key by key
    shared = ("shm", "/dev/shm/*")
    defaults = Action(
        capture=Capture.STACKS,
        memory=MemoryChoice(max=512 << 20, include=("file",), exclude=shared, coredump_filter=0x33),
        release=Release.AFTER_WRITE,
        compress=Compress(codec=Codec.ZSTD, level=3, workers=2),
        limit=Limit(captures=2, period=30.0, fallback=Capture.THREADS),
        honour_rlimit=True,
    )
    everything = Rule(
        name="everything",
        match=Match(
            exe=("/usr/bin/*", "/bin/sh"),
            comm=("sh",),
            cgroup=("/a/*",),
            unit=("*.service",),
            uid=(0, 1000),
            signal=(11, 6, 7, 37),
            cause=(Cause.SIGNAL, Cause.KILLED),
            container=False,
        ),
        action=Action(
            capture=Capture.FULL,
            memory=MemoryChoice(max=None, include=("file",), exclude=(), dontdump=True),
            release=Release.INSTANT,
            compress=Compress(codec=Codec.NONE, level=3, workers=2),
            limit=None,
            honour_rlimit=True,
        ),
    )
    some = Rule(
        name="some",
        match=Match(uid=(0,), cause=(Cause.EXIT,)),
        action=Action(
            capture=defaults.capture,
            memory=defaults.memory,
            release=defaults.release,
            compress=defaults.compress,
            limit=Limit(captures=0, period=30.0, fallback=Capture.THREADS),
            honour_rlimit=True,
        ),
    )
    assert policy == Policy(
        source="x.yaml",
        store=StoreSettings(path=Path("/srv/cores"), min_free=10 * 10**9),
        metrics_listen=("::1", 9000),
        hold=HoldSettings(backend=Backend.PIPE, takeover=Takeover.KEEP),
        release=ReleaseSettings(default=Release.AFTER_WRITE, max_pinned=3 << 29, max_pins=3),
        capture=CaptureSettings(workers=4, queue=8),
        defaults=defaults,
        rules=(everything, some),
        recorder=RecorderSettings(memory=1 << 30, processes=2),
        watch=(
            Watch(
                name="all",
                match=Match(comm=("a", "b"), uid=(7,), container=True),
                every=0.25,
                keep=5,
                memory=1 << 20,
                stack=64 << 10,
                triggers=(
                    Trigger(
                        name="d",
                        condition=Condition.UNINTERRUPTIBLE,
                        above=10,
                        threads=("io*",),
                        mode=SnapshotMode.AUTO,
                    ),
                    Trigger(
                        name="b", condition=Condition.BLOCKED, above=60, capture=Capture.THREADS
                    ),
                    Trigger(
                        name="n",
                        condition=Condition.NO_PROGRESS,
                        above=120,
                        mode=SnapshotMode.NONSTOP,
                    ),
                    Trigger(
                        name="r",
                        condition=Condition.RESIDENT,
                        above=1 << 30,
                        lasting=5,
                        mode=SnapshotMode.FULL_STOP,
                        capture=Capture.FULL,
                    ),
                    Trigger(name="f", condition=Condition.DESCRIPTORS, above=100),
                    Trigger(
                        name="c",
                        condition=Condition.CPU,
                        above=1.5,
                        lasting=30,
                        snapshots=3,
                        period=300,
                    ),
                    Trigger(name="m", condition=Condition.MEMORY, above=0.9),
                    Trigger(name="h", condition=Condition.MEMORY_HIGH, above=10),
                    Trigger(name="p", condition=Condition.PRESSURE, above=0.2, lasting=3),
                ),
            ),
            Watch(name="bare", match=Match(exe=("/bin/x",))),
        ),
    )


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ("{match: {comm: x}}", "f:1: watch[0]: has no `name`"),
        ("{name: a}", "f:1: watch[0]: has no `match`"),
        (
            "{name: a, match: {signal: 11, cause: oom}}",
            "f:1: watch[0].match.signal: a process that lives has none",
        ),
        (
            "{name: a, match: {comm: x}, every: 1ms}",
            'f:1: watch[0].every: expected a duration from 10ms to 1h, not "1ms"',
        ),
        (
            "{name: a, match: {comm: x}, stack: 1MiB}",
            'f:1: watch[0].stack: expected a size from 4KiB to 64KiB, not "1MiB"',
        ),
        (
            "{name: a, match: {comm: x}, memory: 65MiB}",
            "f:1: watch[0].memory: expected at most recorder.memory, 64MiB for all processes, not "
            "65MiB",
        ),
        (
            "{name: a, match: {comm: x}, triggers: [{name: t}]}",
            "f:1: watch[0].triggers[0]: expected exactly one condition out of uninterruptible, "
            "blocked, no-progress, resident, descriptors, cpu, memory, memory-high, pressure; it "
            "has none",
        ),
        (
            "{name: a, match: {comm: x}, triggers: [{name: t, cpu: 9%, blocked: 9s}]}",
            "f:1: watch[0].triggers[0]: expected exactly one condition out of uninterruptible, "
            "blocked, no-progress, resident, descriptors, cpu, memory, memory-high, pressure; it "
            "has blocked and cpu",
        ),
        (
            "{name: a, match: {comm: x}, triggers: [{cpu: 9%}]}",
            "f:1: watch[0].triggers[0]: has no `name`",
        ),
        (
            "{name: a, match: {comm: x}, triggers: [{name: t, cpu: 9}]}",
            'f:1: watch[0].triggers[0].cpu: "9": expected a share of one CPU such as 90%, or 150% '
            "for one and a half",
        ),
        (
            "{name: a, match: {comm: x}, triggers: [{name: t, memory: 100%}]}",
            'f:1: watch[0].triggers[0].memory: "100%": expected a share, 1% to 99%',
        ),
        (
            "{name: a, match: {comm: x}, triggers: [{name: t, pressure: 20}]}",
            'f:1: watch[0].triggers[0].pressure: "20": expected a share, 1% to 99%',
        ),
        (
            "{name: a, match: {comm: x}, triggers: [{name: t, memory-high: 0}]}",
            "f:1: watch[0].triggers[0].memory-high: expected a number of events a second from 1 to "
            "1073741824, not 0",
        ),
        (
            "{name: a, match: {comm: x}, triggers: [{name: t, blocked: 9s, for: 1s}]}",
            "f:1: watch[0].triggers[0].for: `blocked` is a duration already",
        ),
        (
            "{name: a, match: {comm: x}, triggers: [{name: t, cpu: 9%, threads: x}]}",
            "f:1: watch[0].triggers[0].threads: `cpu` is of the whole process",
        ),
        (
            "{name: a, match: {comm: x}, triggers: [{name: t, cpu: 9%}, {name: t, cpu: 8%}]}",
            'f:1: watch[0].triggers[1].name: "t" is the name of the trigger on line 1',
        ),
    ],
)
def test_a_wrong_watch_rule_is_refused(rule: str, problem: str) -> None:
    with pytest.raises(PolicyErrors) as caught:
        loads(f"watch: [{rule}]", "f")
    assert str(caught.value).splitlines()[0] == problem


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "~", "{}", "rules:\nstore:\n"])
def test_a_file_that_says_nothing_is_the_built_in_policy(text: str) -> None:
    assert loads(text, "f") == Policy(source="f")


def test_arm_rules_have_what_is_written_or_the_defaults() -> None:
    text = """
arm:
  max: 3
  rules:
    - {name: a, match: {exe: /x}}
    - name: b
      match: {user: root}
      on: exit
      capture: stacks
      within: 1500ms
      children: true
"""
    assert loads(text, "f").arm == ArmSettings(
        max=3,
        rules=(
            ArmRule(name="a", match=Match(exe=("/x",))),
            ArmRule(
                name="b",
                match=Match(uid=(0,)),
                on=(Cause.EXIT,),
                capture=Capture.STACKS,
                within=1.5,
                children=True,
            ),
        ),
    )
    assert loads("arm:\n", "f").arm == loads("", "f").arm == ArmSettings()


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ("{match: {comm: x}}", "f:1: arm.rules[0]: has no `name`"),
        ("{name: a}", "f:1: arm.rules[0]: has no `match`"),
        (
            "{name: a, match: {cause: oom}}",
            "f:1: arm.rules[0].match.cause: a process that lives has none",
        ),
        (
            "{name: a, match: {comm: x}, on: signal}",
            'f:1: arm.rules[0].on: "signal" is not one of killed, oom, exit',
        ),
        (
            "{name: a, match: {comm: x}, within: 2s}",
            'f:1: arm.rules[0].within: expected a duration from 10ms to 1500ms, not "2s"',
        ),
        (
            "{name: a, match: {comm: x}, capture: record}",
            'f:1: arm.rules[0].capture: "record" is not one of full, stacks, threads',
        ),
        (
            "{name: a, match: {comm: x}}, {name: a, match: {comm: y}}",
            'f:1: arm.rules[1].name: "a" is the name of the arm rule on line 1',
        ),
    ],
)
def test_a_wrong_arm_rule_is_refused(rule: str, problem: str) -> None:
    with pytest.raises(PolicyErrors) as caught:
        loads(f"arm: {{rules: [{rule}]}}", "f")
    assert str(caught.value) == problem


def test_a_wrong_number_of_armed_processes_is_refused() -> None:
    with pytest.raises(PolicyErrors, match=r"arm\.max: .*from 1 to 1024"):
        loads("arm: {max: 0}", "f")


def test_a_rule_limit_over_no_default_limit_starts_from_the_built_in_one() -> None:
    text = "defaults: {limit: none}\nrules: [{name: a, match: {comm: a}, limit: {captures: 9}}]"
    policy = loads(text, "f")
    assert policy.defaults.limit is None
    assert policy.rules[0].action.limit == Limit(captures=9, period=3600.0)


@pytest.mark.parametrize("off", ["off", "no", "false", "none", '"none"'])
def test_metrics_can_be_switched_off(off: str) -> None:
    assert loads(f"metrics: {{listen: {off}}}", "f").metrics_listen is None


def rule(match: str) -> str:
    return f"rules: [{{name: a, match: {{{match}}}}}]"


KNOWN = (
    "store, metrics, hold, release, capture, signature, recorder, sinks, health, kubernetes, "
    "defaults, rules, watch, arm, trace, dumpers, hooks"
)
RULE_KEYS = (
    "name, match, capture, collect, memory, release, compress, limit, routine, honour_rlimit, "
    "attributes, redact, logs"
)
STORE = (
    "path, min_free, max_size, max_records, max_age, max_core_age, keep_free, service_max_size, "
    "service_max_records"
)
LISTEN = 'expected address:port such as "127.0.0.1:9836", or off'
FILTER = "expected hexadecimal bits from 0x0 to 0x1ff such as 0x33 (core(5)), or none"
KINDS = "anon, heap, stack, file, shm, hugetlb"
PROBLEMS = [
    # what a record tells besides
    (
        "defaults: {attributes: [1X]}",
        'f:1: defaults.attributes: "1X": expected the name of a variable such as RELEASE',
    ),
    (
        "defaults: {logs: 0}",
        "f:1: defaults.logs: expected a number of lines (or off) from 1 to 1000, not 0",
    ),
    # keys
    ("ruls: []", 'f:1: ruls: unknown key "ruls"; did you mean "rules"?'),
    ("\nzzz: 1", f'f:2: zzz: unknown key "zzz"; known here: {KNOWN}'),
    (rule("sginal: 1"), 'f:1: rules[0].match.sginal: unknown key "sginal"; did you mean "signal"?'),
    (
        "hold:\n hold:\n",
        'f:2: hold.hold: unknown key "hold"; '
        "known here: backend, takeover, patience, bids, max, group",
    ),
    ("a b: 1", f'f:1: unknown key "a b"; known here: {KNOWN}'),
    ('"\\e[2J\\ud800": 1', f'f:1: unknown key "\\x1b[2J\\ud800"; known here: {KNOWN}'),
    (
        'store: {path: "/a\\ud800"}',
        'f:1: store.path: "/a\\ud800": U+D800 to U+DFFF are no characters',
    ),
    (
        'defaults: {redact: {patterns: [{name: a, regex: "\\udfff"}]}}',
        'f:1: defaults.redact.patterns[0].regex: "\\udfff": U+D800 to U+DFFF are no characters',
    ),
    (
        rule('user: "\\ud800"'),
        'f:1: rules[0].match.user: "\\ud800": U+D800 to U+DFFF are no characters',
    ),
    ("[a]: 1", "f:1: a key must be text, not a list"),
    (f"? {'k' * 9000}", f'f:1: unknown key "{"k" * 80}…"; known here: {KNOWN}'),
    ("hold: {}\nhold: {}", "f:2: hold: already given on line 1"),
    # shapes
    ("- 1", f"f:1: expected keys ({KNOWN}), not a list"),
    ("hello", f'f:1: expected keys ({KNOWN}), not "hello"'),
    ("store: /var", f'f:1: store: expected keys ({STORE}), not "/var"'),
    (
        "store: {max_size: 0%}",
        'f:1: store.max_size: "0%": expected a share, 1% to 99%',
    ),
    (
        "store: {max_age: 3m}",
        'f:1: store.max_age: expected a duration from 1h to 10000d, not "3m"',
    ),
    (
        "store: {max_records: 0}",
        "f:1: store.max_records: expected a number of records from 1 to 10000000, not 0",
    ),
    ("rules: {a: 1}", "f:1: rules: expected a list of rules, not a mapping"),
    ("rules: [a]", f'f:1: rules[0]: expected keys ({RULE_KEYS}), not "a"'),
    (
        "hold: {backend: [a]}",
        "f:1: hold.backend: expected one of auto, socket, pipe, none, not a list",
    ),
    (
        "hold: {backend: }",
        "f:1: hold.backend: has no value; expected one of auto, socket, pipe, none",
    ),
    (
        "hold: !!python/object:os.abort {}",
        "f:1: hold: expected keys (backend, takeover, patience, bids, max, group), "
        'not a value with the tag "tag:yaml.org,2002:python/object:os.abort"',
    ),
    # values
    ("store: {path: cores}", 'f:1: store.path: "cores" is not an absolute path of a directory'),
    ("store: {path: /a/../b}", 'f:1: store.path: "/a/../b" is not an absolute path of a directory'),
    ("store: {path: 12}", 'f:1: store.path: is not text to YAML; quote it: "12"'),
    ("store: {min_free: -1GiB}", "f:1: store.min_free: a size cannot be negative"),
    (
        "store: {min_free: 5M}",
        'f:1: store.min_free: "5M" is ambiguous: write 5MiB or 5MB',
    ),
    ("store: {min_free: 5gib}", 'f:1: store.min_free: unknown unit "gib"; did you mean 5GiB?'),
    ("store: {min_free: 0.3}", 'f:1: store.min_free: "0.3" is not a whole number of bytes'),
    (
        "store: {min_free: much}",
        'f:1: store.min_free: "much" is not understood; '
        "expected a size such as 512MiB, 8GiB, 10GB or 1024 (bytes)",
    ),
    (
        "store: {min_free: 999999999999TiB}",
        'f:1: store.min_free: "999999999999TiB" is more than any host has',
    ),
    (
        "metrics: {listen: 9836}",
        f'f:1: metrics.listen: "9836" has no port from 0 to 65535; {LISTEN}',
    ),
    (
        'metrics: {listen: "h:65536"}',
        f'f:1: metrics.listen: "h:65536" has no port from 0 to 65535; {LISTEN}',
    ),
    (
        'metrics: {listen: ":99"}',
        'f:1: metrics.listen: ":99" has no address; "0.0.0.0:99" listens on every interface, '
        '"127.0.0.1:99" on this host',
    ),
    (
        'metrics: {listen: "::1:99"}',
        'f:1: metrics.listen: write an IPv6 address in brackets: "[::1]:99"',
    ),
    (
        'metrics: {listen: "[x]:99"}',
        f'f:1: metrics.listen: "[x]" is not an IPv6 address; {LISTEN}',
    ),
    ('metrics: {listen: "a b:99"}', f'f:1: metrics.listen: "a b" is not an address; {LISTEN}'),
    (
        "hold: {backend: sokcet}",
        'f:1: hold.backend: "sokcet" is not one of auto, socket, pipe, none; '
        'did you mean "socket"?',
    ),
    (
        "hold: {takeover: 1}",
        'f:1: hold.takeover: expected true, false, keep or yield, not "1"',
    ),
    (
        "hold: {takeover: [keep]}",
        "f:1: hold.takeover: expected true, false, keep or yield, not a list",
    ),
    (
        "release: {max_pins: 0}",
        "f:1: release.max_pins: expected a number of pins from 1 to 1024, not 0",
    ),
    (
        "capture: {workers: 010}",
        'f:1: capture.workers: expected a number of workers from 1 to 64, not "010"',
    ),
    (
        "defaults: {memory: {max: 1}}",
        "f:1: defaults.memory.max: is less than a page (4KiB); to keep no memory: capture: threads",
    ),
    (
        "defaults: {memory: {exclude: [shm, heep]}}",
        f'f:1: defaults.memory.exclude[1]: "heep" is neither a path glob nor one of {KINDS}; '
        'did you mean "heap"?',
    ),
    (
        'defaults: {memory: {include: "[heap]"}}',
        "f:1: defaults.memory.include: write the kind without brackets: heap",
    ),
    (
        'defaults: {memory: {include: "[anon:x]"}}',
        "f:1: defaults.memory.include: brackets are a character class in a glob; "
        'write "[[]anon:x]"',
    ),
    (
        "defaults: {memory: {coredump_filter: 33}}",
        f'f:1: defaults.memory.coredump_filter: "33": {FILTER}',
    ),
    ("defaults: {compress: lz4}", 'f:1: defaults.compress: "lz4" is not one of zstd, none'),
    (
        "defaults: {compress: {level: 22}}",
        "f:1: defaults.compress.level: expected a level from 1 to 19, not 22",
    ),
    (
        "defaults: {limit: 5}",
        'f:1: defaults.limit: expected keys (captures, period, fallback), or none, not "5"',
    ),
    (
        "defaults: {limit: {captures: -1}}",
        "f:1: defaults.limit.captures: expected a number of captures from 0 to 10000, not -1",
    ),
    (
        "defaults: {limit: {period: 30}}",
        'f:1: defaults.limit.period: "30" has no unit; '
        "expected a duration such as 30s, 5m, 1h, 1d or 2w",
    ),
    (
        "defaults: {limit: {period: 0s}}",
        "f:1: defaults.limit.period: a duration must be greater than 0",
    ),
    (
        "defaults: {limit: {period: 999d}}",
        'f:1: defaults.limit.period: expected a duration of at most a year, not "999d"',
    ),
    (
        "dumpers: [{name: a b, module: x}]",
        "f:1: dumpers[0].name: expected up to 64 letters, digits and any of _.:@-\n"
        'f:1: dumpers[0].module: "x": expected package.module:name',
    ),
    (
        "dumpers: [{name: a, module: 'x:y', entry_point: z, match: {cause: exit}}]",
        "f:1: dumpers[0]: give either module or entry_point, not both\n"
        "f:1: dumpers[0].match.cause: expected signal or killed: others leave nothing",
    ),
    (
        "dumpers: [{name: a}, {name: a}]",
        'f:1: dumpers[1].name: "a" is the name of the dumper on line 1',
    ),
    ("dumpers: [{module: 'x:y'}]", "f:1: dumpers[0]: has no `name`"),
    ("hooks: [{name: a}]", "f:1: hooks[0]: has no `exec`"),
    (
        "hooks: [{name: a, exec: mail}]",
        'f:1: hooks[0].exec: "mail": expected the absolute path of a program',
    ),
    (
        "hooks: [{name: a, exec: [/bin/x], timeout: 2h}]",
        'f:1: hooks[0].timeout: expected a duration from 100ms to 1h, not "2h"',
    ),
    ("hold: {bids: 2s}", 'f:1: hold.bids: expected a duration from 5ms to 1s, not "2s"'),
    ("hold: {max: 2h}", 'f:1: hold.max: expected a duration from 100ms to 1h, not "2h"'),
    ("hold: {group: no-such}", 'f:1: hold.group: no group "no-such" on this host'),
    ("hold: {patience: 2h}", 'f:1: hold.patience: expected a duration from 50ms to 1m, not "2h"'),
    (
        "capture: {max_time: 2d}",
        'f:1: capture.max_time: expected a duration from 1s to 1d, not "2d"',
    ),
    (
        "capture: {explain_time: 2h}",
        'f:1: capture.explain_time: expected a duration from 1s to 1h, not "2h"',
    ),
    (
        "defaults: {limit: {fallback: full}}",
        'f:1: defaults.limit.fallback: "full" is not one of stacks, threads, record',
    ),
    (
        "defaults: {limit: {fallback: none}}",
        "f:1: defaults.limit.fallback: a death beyond the limit is at least recorded: record",
    ),
    # rules
    ("rules: [{match: {comm: a}}]", "f:1: rules[0]: has no `name`"),
    ("rules: [{name: a}]", "f:1: rules[0]: has no `match`"),
    (
        "rules:\n- {name: a, match: {comm: a}}\n- {name: a, match: {comm: b}}",
        'f:3: rules[1].name: "a" is the name of the rule on line 2',
    ),
    (
        "rules: [&r {name: a, match: {comm: a}}, *r]",
        'f:1: rules[1].name: "a" is the name of the rule on line 1',
    ),
    (
        "rules: [{name: defaults, match: {comm: a}}]",
        'f:1: rules[0].name: "defaults" is reserved for deaths that no rule matches',
    ),
    (
        'rules: [{name: "a\\n", match: {comm: a}}]',
        "f:1: rules[0].name: must be at most 64 printable characters, no space at the ends",
    ),
    (
        rule(""),
        "f:1: rules[0].match: no condition; what holds for every death belongs in `defaults`",
    ),
    (rule("comm: yes"), 'f:1: rules[0].match.comm: is not text to YAML; quote it: "yes"'),
    (rule('exe: ""'), "f:1: rules[0].match.exe: cannot be empty"),
    (
        rule("exe: []"),
        "f:1: rules[0].match.exe: an empty list never matches; leave the key out for any value",
    ),
    (
        rule("signal: SEGF"),
        'f:1: rules[0].match.signal: "SEGF" is not a signal; did you mean "SEGV"?',
    ),
    (
        rule("signal: [11, 65]"),
        "f:1: rules[0].match.signal[1]: 65 is not a signal: they are 1 to 64",
    ),
    (
        rule("signal: crash"),
        'f:1: rules[0].match.signal: "crash" is not a signal such as SIGSEGV, SEGV or 11',
    ),
    (
        rule("cause: [exit], signal: 11"),
        "f:1: rules[0].match: never matches: an exit has no signal",
    ),
    (rule("user: no-such"), 'f:1: rules[0].match.user: no user "no-such" on this host'),
    (rule("user: 1000"), 'f:1: rules[0].match.user: "1000" is a number; write uid: 1000'),
    (rule("uid: 1, user: root"), "f:1: rules[0].match: give either uid or user, not both"),
    (
        rule("uid: 4294967295"),
        "f:1: rules[0].match.uid: expected a uid from 0 to 4294967294, not 4294967295",
    ),
    # not YAML, or too much of it
    (
        "rules:\n - match: {exe: */java}",
        "f:2: not YAML: while scanning an alias expected alphabetic or numeric character, but "
        "found '/'; a text which begins with * must be quoted",
    ),
    (
        "a: [",
        "f:1: not YAML: while parsing a flow node expected the node content, "
        "but found '<stream end>'; a bracket may not be closed",
    ),
    (
        "store: {}\n---\nhold: {}",
        "f:2: not YAML: expected a single document in the stream but found another document "
        "(begun on line 1)",
    ),
    (
        "defaults:\n\tlimit: none",
        "f:2: not YAML: while scanning for the next token found character '\\t' that cannot start "
        "any token; indent with blanks, not with tabs",
    ),
    (
        "store:\n  min_free: 1GiB\n path: /x",
        "f:3: not YAML: while parsing a block mapping expected <block end>, but found "
        "'<block mapping start>' (begun on line 1); indent it as the lines that it belongs to",
    ),
    (
        "store: path: /x",
        "f:1: not YAML: mapping values are not allowed here; quote a text that has `: ` in it; a "
        "key begins a line",
    ),
    ("\n\x01", "f:2: not YAML: character U+0001 is not allowed"),
    ("\n" + "[" * 3000, "f:2: not YAML: nested more than 20 deep"),
    ("[" + "1," * 60_000 + "]", "f:1: not YAML: more than 50000 values"),
    ("#" * (1 << 20) + "#", "f: is larger than 1 MiB"),
    ("&a [*a]", "f: more than 50000 values once its aliases are followed"),
    (
        "\n".join(["a: &a0 [x]", *(f"a{n}: &a{n} [{f'*a{n - 1},' * 9}]" for n in range(1, 9))]),
        "f: more than 50000 values once its aliases are followed",
    ),
]


@pytest.mark.parametrize(("text", "message"), PROBLEMS)
def test_what_is_wrong_is_named_with_line_key_and_what_would_be_right(
    text: str, message: str
) -> None:
    with pytest.raises(PolicyError) as caught:
        loads(text, "f")
    assert str(caught.value) == message


def test_everything_that_is_wrong_is_reported_at_once_in_the_order_of_lines() -> None:
    # GIVEN a file with problems of several kinds, some in one rule
    text = """\
store: {path: cores, color: blue}
rules:
  - match: {signal: [11, 99, SEGF]}
    capture: ful
metrics: {listen: 1}
"""
    # WHEN it is loaded
    with pytest.raises(PolicyErrors) as caught:
        loads(text, "f")

    # THEN the message has one line for each, and each can be had by itself
    lines = [
        'f:1: store.path: "cores" is not an absolute path of a directory',
        f'f:1: store.color: unknown key "color"; known here: {STORE}',
        "f:3: rules[0].match.signal[1]: 99 is not a signal: they are 1 to 64",
        'f:3: rules[0].match.signal[2]: "SEGF" is not a signal; did you mean "SEGV"?',
        "f:3: rules[0]: has no `name`",
        'f:4: rules[0].capture: "ful" is not one of full, stacks, threads, record, none; '
        'did you mean "full"?',
        f'f:5: metrics.listen: "1" has no port from 0 to 65535; {LISTEN}',
    ]
    assert str(caught.value).splitlines() == lines
    assert [str(problem) for problem in caught.value.problems] == lines
    assert [(p.line, p.key) for p in caught.value.problems][:2] == [
        (1, "store.path"),
        (1, "store.color"),
    ]


def test_a_file_with_too_many_problems_is_reported_in_part() -> None:
    with pytest.raises(PolicyErrors) as caught:
        loads("\n".join(f"k{n}: 1" for n in range(150)), "f")
    assert len(caught.value.problems) == 101
    assert str(caught.value).splitlines()[-1] == "f: and 50 more problems"


def test_a_file_that_can_not_be_read_is_a_policy_error(tmp_path: Path) -> None:
    missing, folder, binary = tmp_path / "missing", tmp_path, tmp_path / "binary"
    binary.write_bytes(b"store:\n\xff")
    large = tmp_path / "large"
    large.write_bytes(b"#")
    os.truncate(large, 3 << 20)
    wrong = {
        missing: f"{missing}: cannot be read: No such file or directory",
        folder: f"{folder}: cannot be read: Is a directory",
        binary: f"{binary}:2: is not UTF-8 text",
        large: f"{large}: is larger than 1 MiB",
    }
    for path, message in wrong.items():
        with pytest.raises(PolicyErrors) as caught:
            load(path)
        assert str(caught.value) == message


_WORDS = sorted({part.removesuffix("[]") for key in keys() for part in key.split(".")})
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["none", "full", "zstd", "1h", "8GiB", "SIGSEGV", "exit", "/x/*", "auto"])
)
_TREES = st.recursive(
    _SCALARS,
    lambda below: (
        st.lists(below, max_size=4)
        | st.dictionaries(st.sampled_from(_WORDS) | st.text(max_size=4), below, max_size=6)
    ),
    max_leaves=20,
)


@settings(max_examples=150)
@given(text=st.text() | _TREES.map(yaml.safe_dump) | _TREES.map(lambda tree: yaml.dump([tree])))
def test_any_text_is_a_policy_or_a_policy_error(text: str) -> None:
    try:
        policy = loads(text, "f")
    except PolicyError as error:
        message = str(error)
        assert message.startswith("f")
        assert all(line.isprintable() for line in message.split("\n"))
        message.encode()  # can be printed: no lone surrogate
    else:
        assert policy.source == "f"


def test_trace_rules() -> None:
    text = (
        "trace: [{name: a, match: {unit: x.service}, calls: 8, strings: 32, include: '%file', "
        "exclude: [openat, /^stat]}, {name: b, match: {comm: c}}]"
    )
    full, short = loads(text, "f").trace
    assert (full.calls, full.strings) == (8, 32)
    assert (full.include, full.exclude) == (("%file",), ("openat", "/^stat"))
    assert (short.calls, short.strings, short.include, short.exclude) == (64, 0, (), ())


@pytest.mark.parametrize(
    ("keys_of_it", "problem"),
    [
        ("calls: 65", "f:1: trace[0].calls: expected a number of calls from 1 to 64"),
        ("include: [opnat]", "f:1: trace[0].include: no system call is named 'opnat'"),
        ("exclude: '%nothing'", "f:1: trace[0].exclude: %nothing: the sets are desc, file"),
        ("cals: 3", 'f:1: trace[0].cals: unknown key "cals"; did you mean "calls"?'),
    ],
)
def test_what_is_wrong_with_a_trace_rule_is_said(keys_of_it: str, problem: str) -> None:
    with pytest.raises(PolicyErrors) as caught:
        loads(f"trace: [{{name: a, match: {{comm: c}}, {keys_of_it}}}]", "f")
    assert problem in str(caught.value)


def test_limits_of_the_store() -> None:
    text = """
store:
  max_size: 25%
  max_records: none
  max_age: 90d
  max_core_age: 2w
  keep_free: 5GiB
  service_max_size: 1GiB
  service_max_records: 1000
"""
    day = 86400.0
    assert loads(text, "f").store == StoreSettings(
        max_size=0.25,
        max_records=None,
        max_age=90 * day,
        max_core_age=14 * day,
        keep_free=5 << 30,
        service_max_size=1 << 30,
        service_max_records=1000,
    )
    assert loads("store: {max_size: none}", "f").store.max_size is None


def test_hooks() -> None:
    text = """
hooks:
  - name: page
    match: {unit: billing.service}
    exec: [/usr/local/bin/page, --team, billing]
    timeout: 5s
  - {name: all, exec: /bin/true, user: root}
"""
    assert loads(text, "f").hooks == (
        Hook(
            name="page",
            match=Match(unit=("billing.service",)),
            exec=("/usr/local/bin/page", "--team", "billing"),
            timeout=5.0,
        ),
        Hook(name="all", exec=("/bin/true",), user=0),
    )
