"""A Python program that dies inside the interpreter: py_crash.py abort|segv [now]."""

import ctypes
import os
import sys


def crash(kind: str) -> None:
    if kind == "abort":
        os.abort()
    ctypes.string_at(0x10)  # not faulthandler._sigsegv(): that forbids a core first


def main() -> None:
    print("ready", flush=True)
    if sys.argv[-1] != "now":
        sys.stdin.readline()
    crash(sys.argv[1])


main()
