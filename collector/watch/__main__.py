"""`python -m collector.watch FD STORE`: the recorder, started by the agent only."""

from __future__ import annotations

import gc
import logging
import signal
import socket
import sys
from pathlib import Path

from collector.watch.recorder import Recorder


def _main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    # the agent's end is ours: Ctrl-C and the service manager's signals are for it
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    gc.freeze()
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        Recorder(channel, Path(sys.argv[2])).run()


if __name__ == "__main__":
    _main()
