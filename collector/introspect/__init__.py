"""The library for programs that look at live processes: see docs/introspect.md."""

from __future__ import annotations

from collector.arch.syscalls import syscall_name
from collector.errors import NotPermitted, ProcessError, ProcessGone, Unreadable
from collector.introspect.process import Process
from collector.introspect.types import (
    ProcessIdentity,
    Registers,
    Source,
    Stack,
    SystemCall,
    ThreadState,
)
from collector.probe.live import LiveProbe, open_live

__all__ = [
    "LiveProbe",
    "NotPermitted",
    "Process",
    "ProcessError",
    "ProcessGone",
    "ProcessIdentity",
    "Registers",
    "Source",
    "Stack",
    "SystemCall",
    "ThreadState",
    "Unreadable",
    "open_live",
    "syscall_name",
]
