"""`python -m collector.watch FD STORE`: the recorder, started by the agent only."""

from __future__ import annotations

import gc
import logging
import signal
import socket
import sys
from pathlib import Path

from collector import logs
from collector.linux import oom_score
from collector.watch.recorder import Recorder


def _main() -> None:
    logs.set_up(logging.INFO)
    oom_score.volunteer(oom_score.RECORDER)
    # the agent's end is ours: Ctrl-C and the service manager's signals are for it
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    gc.freeze()
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        Recorder(channel, Path(sys.argv[2])).run()


if __name__ == "__main__":
    _main()
