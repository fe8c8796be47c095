"""decide: what an arm rule wants of a process that has ended, and how much of it limits allow."""

from __future__ import annotations

import msgspec

from collector.agent.armed import Armed
from collector.agent.context import Context
from collector.agent.crash import Crash, Decided
from collector.agent.decide import NO_CORE_WANTED
from collector.agent.owner import name_of
from collector.agent.pods import with_pod
from collector.linux import cgroupfs, procfs
from collector.model import Capture
from collector.policy.facts import exe_of, facts_from
from collector.policy.limit import Admission
from collector.policy.match import OPTED_OUT
from collector.policy.match import decide as match
from collector.policy.types import Action, ArmRule, Decision, Facts

_MOST_GROUPS = 64 << 10  # bytes of /proc/PID/cgroup


def decide_armed(context: Context, crash: Crash, one: Armed) -> Decided:
    """What the rule wants of it, with what policy says of deaths of its kind."""
    seen, dying = crash.seen, one.opened
    facts = facts_from(
        seen.cause,
        seen.signal,
        status=dying.text.status,
        groups=groups_of(one),
        exe=None if dying.exe_fd is None else exe_of(f"/proc/self/fd/{dying.exe_fd}"),
    )
    facts = with_pod(context, facts, waits=False)
    decision = _decision(context, facts, one.rule)
    admission = _admit(context, crash, decision.action, facts)
    if admission.reason:
        context.metrics.limited.labels(admission.capture.value).inc()
    explain = admission.capture is not Capture.RECORD
    return Decided(facts=facts, decision=decision, admission=admission, explain=explain)


def _admit(context: Context, crash: Crash, action: Action, facts: Facts) -> Admission:
    if action.honour_rlimit and crash.gathered.dying.core_limit == 0:
        return Admission(capture=Capture.RECORD, reason=NO_CORE_WANTED)
    owner = name_of(crash.gathered.owner, facts)
    return context.arm_limiter.admit(action, facts.exe, None, uid=facts.uid, owner=owner)


def _decision(context: Context, facts: Facts, rule: ArmRule) -> Decision:
    policy = context.policy.policy
    found = match(policy, facts)
    # an exit falls under no rule unless one names exits; then the defaults say the rest
    base = policy.defaults if found.action.capture is Capture.NONE else found.action
    # its pod may have opted out by a policy that came after it was armed
    capture = Capture.RECORD if found.rule == OPTED_OUT else rule.capture
    action = msgspec.structs.replace(base, capture=capture, collect=None)
    return Decision(rule=rule.name, action=action, why=f"armed by {rule.name}")


def groups_of(one: Armed) -> bytes:
    """Its /proc/PID/cgroup: as it is now as far as the kernel still tells, else as it was armed."""
    path = f"/proc/self/fd/{one.opened.dir_fd}/cgroup"
    now = procfs.read(path, _MOST_GROUPS) or b""
    return cgroupfs.of_exiting(now, one.opened.text.cgroup)
