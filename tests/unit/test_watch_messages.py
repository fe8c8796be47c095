"""What the agent and its flight recorder say to each other arrives as it was sent."""

from __future__ import annotations

import contextlib

from collector.policy.load import loads
from collector.watch.messages import Rules, pair, send, to_recorder

POLICY = """
watch: [{name: all, match: {uid: 0}, triggers: [{name: big, resident: 1GiB}]}]
trace: [{name: all, match: {comm: "a*"}}]
kubernetes: {root: /host}
defaults: {redact: {environment: "*_TOKEN", patterns: [{name: card, regex: "[0-9]{16}"}]}}
rules: [{name: keys, match: {unit: vault.service}, capture: record}]
"""


def test_all_of_a_policy_that_the_recorder_goes_by_arrives() -> None:
    policy = loads(POLICY, "test")
    rules = Rules(
        watch=policy.watch,
        settings=policy.recorder,
        trace=policy.trace,
        min_free=policy.store.min_free,
        defaults=policy.defaults,
        rules=policy.rules,
        kubernetes=policy.kubernetes,
    )
    with contextlib.ExitStack() as until:
        ours, theirs = (until.enter_context(end) for end in pair())
        send(ours, rules)
        assert to_recorder.decode(theirs.recv(1 << 20)) == rules
