"""`python -m collector.redact PARENT`: answer one Question of `ask`. It dies with its parent."""

from __future__ import annotations

import os
import resource
import sys

import msgspec

from collector.linux import oom_score, prctl
from collector.redact.ask import Question
from collector.redact.record import HIDDEN, concealed, withheld
from collector.redact.rules import OutOfTime, Rules

_MEMORY = 1 << 30  # bytes of private memory


def main() -> None:
    prctl.die_with_parent()
    if os.getppid() != int(sys.argv[1]):
        return
    prctl.forbid_new_privileges()
    prctl.set_dumpable(False)
    oom_score.volunteer(oom_score.WORKER)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    question = msgspec.json.decode(sys.stdin.buffer.read(), type=Question)
    sys.stdout.buffer.write(msgspec.json.encode(answer(question)))


def answer(question: Question) -> msgspec.Struct:
    """The record as it may be kept."""
    redact, record = question.redact, question.record
    secrets = {
        rule: [value.encode("latin-1") for value in values]
        for rule, values in question.secrets.items()
    }
    rules, counts = Rules(redact, secrets), dict(record.redacted)
    try:
        found = concealed(record, redact, lambda text: rules.hidden(text, HIDDEN, counts))
    except OutOfTime:
        why = f"its texts are left out: not looked through within {redact.time:g} s (redact.time)"
        return withheld(msgspec.structs.replace(record, lost={**record.lost, "redaction": why}))
    return msgspec.structs.replace(found, redacted=counts)


if __name__ == "__main__":
    main()
