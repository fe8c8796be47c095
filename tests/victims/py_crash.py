"""A Python program that dies inside the interpreter: py_crash.py abort|segv|main|other [now]."""

import ctypes
import os
import sys
import threading


def crash(kind: str) -> None:
    if kind == "abort":
        os.abort()
    ctypes.string_at(0x10)  # not faulthandler._sigsegv(): that forbids a core first


def through_c(kind: str) -> None:
    list(map(lambda one: crash(one), [kind]))  # noqa: C417, PLW0108 - a call by C code is wanted


def in_thread(kind: str) -> None:
    through_c(kind)


def main() -> None:
    print("ready", flush=True)
    if sys.argv[-1] != "now":
        sys.stdin.readline()
    if sys.argv[1] == "main":
        through_c("segv")
    elif sys.argv[1] == "other":
        threading.Thread(target=in_thread, args=["segv"]).start()
    else:
        crash(sys.argv[1])


main()
