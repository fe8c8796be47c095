"""The process of one plugin: `python -m collector.dumpers.worker FD JOB`.

It is a dumper like any other, registered over a socket pair that it is born with. What it dumps is
hostile, and what it runs is not ours: so it has a user of its own, bounded memory, and no way to
more rights; it ends with the agent, and the agent ends it when its time is over.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import logging
import os
import pwd
import resource
import socket
import sys
import traceback
from collections.abc import Iterator
from importlib.metadata import entry_points

import msgspec

from collector.dumpers.client import Client, status_of
from collector.dumpers.held import HeldProcess
from collector.dumpers.plugin import NOMATCH, DumperPlugin
from collector.dumpers.protocol import Gone, Message
from collector.errors import CorewardError
from collector.linux import oom_score, prctl
from collector.policy.types import DumperRule, Match
from collector.signals import signal_name

GROUP = "coreward.dumpers"  # of entry points

log = logging.getLogger(__name__)


class BadPlugin(CorewardError):
    """What the policy names is not there, or no dumper."""


def main() -> None:
    connection = socket.socket(fileno=int(sys.argv[1]))
    rule = msgspec.json.decode(sys.argv[2], type=DumperRule)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s dumper: %(message)s")
    try:
        _confine(rule)
        plugin = load(rule)
        serve(connection, rule, plugin)
    except (CorewardError, OSError) as error:
        log.error("%s: %s", rule.name, error)
        sys.exit(1)


def _confine(rule: DumperRule) -> None:
    """Give up what it does not need, for good. Raises OSError if the kernel does not let it."""
    prctl.die_with_parent()
    oom_score.volunteer(oom_score.WORKER)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (rule.memory, rule.memory))
    if rule.user is not None and os.geteuid() == 0:
        user = pwd.getpwuid(rule.user)
        os.initgroups(user.pw_name, user.pw_gid)
        os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
        os.setresuid(rule.user, rule.user, rule.user)
        prctl.die_with_parent()  # a change of ids has reset it
    prctl.forbid_new_privileges()
    prctl.set_dumpable(False)


def load(rule: DumperRule) -> DumperPlugin:
    """The plugin that a rule names: `package.module:name`, or an entry point. Raises BadPlugin."""
    try:
        if rule.module is not None:
            module, _, name = rule.module.partition(":")
            made = getattr(importlib.import_module(module), name)()
        else:
            wanted = rule.entry_point or rule.name
            found = [one for one in entry_points(group=GROUP) if one.name == wanted]
            if not found:
                raise BadPlugin(f"no entry point {GROUP} is named {wanted}")
            made = found[0].load()()
    except BadPlugin:
        raise
    except Exception as error:  # it is not our program
        raise BadPlugin(f"{rule.module or rule.name} cannot be loaded: {error!r}") from error
    for method in ("probe", "handle"):
        if not callable(getattr(made, method, None)):
            raise BadPlugin(f"{rule.module or rule.name} has no {method}()")
    plugin: DumperPlugin = made
    return plugin


def serve(connection: socket.socket, rule: DumperRule, plugin: DumperPlugin) -> None:
    """Until the agent closes the connection. Raises CorewardError if it refuses the plugin."""
    with Client(
        connection, rule.name, match=conditions(rule.match), pin=rule.pin, events=1
    ) as client:
        for event in client.events():
            if event.verb == "PROBE":
                client.bid(event, _probe(plugin, event))
            elif event.verb == "DUMP":
                with contextlib.suppress(BrokenPipeError, Gone):  # the agent ends
                    _dump(client, plugin, event)


def conditions(match: Match) -> Iterator[tuple[str, str]]:
    """The conditions of the policy as REGISTER has them."""
    for name in ("exe", "comm", "cgroup", "unit", "uid", "cause"):
        for value in getattr(match, name) or ():
            yield name, str(value)
    for number in match.signal or ():
        yield "signal", signal_name(number)
    if match.container is not None:
        yield "container", "yes" if match.container else "no"


def _probe(plugin: DumperPlugin, event: Message) -> int:
    try:
        return int(plugin.probe(HeldProcess(event)))
    except Exception:  # it is not our program
        log.error("probe() failed: %s", traceback.format_exc(limit=-2).strip())
        return NOMATCH


def _dump(client: Client, plugin: DumperPlugin, event: Message) -> None:
    try:
        process = HeldProcess(event)
        status, note = plugin.handle(process, _limit(process)), None
    except OSError as error:
        status, note = status_of(error), str(error)
    except Exception as error:  # it is not our program
        log.error("handle() failed: %s", traceback.format_exc(limit=-2).strip())
        status, note = errno.EIO, repr(error)
    passed = bool(getattr(plugin, "passes", False))
    client.let_go(event, status or 0, note or getattr(plugin, "note", None), pass_on=passed)


def _limit(process: HeldProcess) -> int | None:
    """Bytes of memory in its core: by policy, and by its RLIMIT_CORE."""
    limits = [limit for limit in (process.limit, process.core_limit) if limit is not None]
    return min(limits, default=None)


if __name__ == "__main__":
    main()
