"""Which frame of a backtrace is the program's own."""

from __future__ import annotations

import pytest

from collector.explain.blame import own_name, program_frame
from collector.model import Frame

EXE, LIBC = "/opt/victim", "/usr/lib/x86_64-linux-gnu/libc.so.6"


@pytest.mark.parametrize(
    ("function", "name"),
    [
        ("inner", "inner"),
        ("shop::Order::place(int)", "shop::Order::place"),
        ("int& std::vector<int, std::allocator<int> >::at(unsigned long)", "std::vector::at"),
        ("std::string make<int>(int)", "make"),
        ("(anonymous namespace)::f(std::string)", "::f"),
        ("main::{lambda(int)#1}::operator()(int) const", "main::::operator"),
        ("std::ostream& std::operator<< <char>(std::ostream&, char const*)", "std::operator"),
        ("operator new(unsigned long)", "operatornew"),
        ("core::panicking::panic_fmt", "core::panicking::panic_fmt"),
    ],
)
def test_the_name_of_a_function_alone(function: str, name: str) -> None:
    assert own_name(function) == name


HEADERS = "/usr/include/c++/12/bits"


@pytest.mark.parametrize(
    "library",
    [
        Frame(pc=1, function="__strlen_evex", module=LIBC),
        Frame(pc=1, function="int& std::vector<int>::at(unsigned long)", module=EXE),
        Frame(pc=1, function="at", file=f"{HEADERS}/stl_vector.h", inline=True, module=EXE),
        Frame(pc=1, function="core::panicking::panic", module=EXE),
        Frame(pc=1, function="<core::option::Option<u64>>::unwrap", module=EXE),
        Frame(pc=1, function="__rustc::__rust_abort", module=EXE),
        Frame(pc=1, function="runtime.gopanic", module=EXE),
        Frame(pc=1, function="__assert_fail", module=EXE),
        Frame(pc=1),
    ],
)
def test_a_frame_of_a_library_is_passed_over(library: Frame) -> None:
    # (the line of its own function may be that of a template in it)
    own = Frame(pc=2, function="std::string make<int>(int)", file=f"{HEADERS}/x.h", module=EXE)
    assert program_frame([library, own]) is own
    assert program_frame([library]) is None


PYTHON, CTYPES = "/usr/bin/python3.11", "/usr/lib/python3.11/lib-dynload/_ctypes.cpython-311.so"
STANDARD = "/usr/lib/python3.11/ctypes/__init__.py"


def python(function: str, file: str) -> Frame:
    return Frame(pc=9, function=function, file=file, line=12, language="python")


def test_of_an_interpreter_the_function_that_it_runs_is_told() -> None:
    # GIVEN a crash in C code that Python's own library has called
    native = [
        Frame(pc=1, function="__strlen_evex", module=LIBC),
        Frame(pc=2, module=CTYPES),
        Frame(pc=3, function="_PyObject_MakeTpCall", module=PYTHON),
    ]
    loop = Frame(pc=9, function="_PyEval_EvalFrameDefault", module=PYTHON)
    own = python("crash", "/srv/app.py")
    # THEN it is the program's own function in Python
    assert program_frame([*native, python("string_at", STANDARD), own, loop]) is own
    # AND of an installed package as well
    other = python("load", "/usr/lib/python3.11/site-packages/some/load.py")
    assert program_frame([*native, other, own, loop]) is other
    # AND without functions of Python the native one
    assert program_frame([*native, loop]) is native[1]
    # AND a library that crashes by itself comes before who called it
    extension = Frame(pc=4, function="resize", module="/srv/imaging.cpython-311.so")
    assert program_frame([extension, own, loop]) is extension
