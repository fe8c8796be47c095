"""`python -m collector.agent.retainer`: one run of retention, for `retain`.

It reads an Order from stdin, and says what it has removed, or in a string why it could not.
"""

from __future__ import annotations

import datetime
import logging
import sys
from pathlib import Path

import msgspec

from collector import logs
from collector.agent.retain import Order
from collector.capture.helper import become_helper
from collector.errors import CorewardError
from collector.store.limits import Trimmed
from collector.store.retention import trim
from collector.store.store import Store


def main() -> None:
    become_helper(urgent=False)
    logs.set_up(logging.WARNING)
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    answer: Trimmed | str
    try:
        with Store(Path(order.store), create=False) as store:
            store.refresh()
            store.sweep()
            answer = trim(store, order.limits, datetime.datetime.now(datetime.UTC))
    except (CorewardError, OSError) as error:
        answer = str(error)
    sys.stdout.buffer.write(msgspec.json.encode(answer))


if __name__ == "__main__":
    main()
