"""Which functions of a stack name a bug, and what is the same stack."""

from __future__ import annotations

import time

import pytest

from collector.model import Frame
from collector.signature.rules import parse, rules
from collector.signature.stack import names, stack_key
from collector.signature.types import SignatureRules
from tests.unit.signature_samples import ABORT, BUILD, ENTRY, EXE, LIBC, frame, functions, libc, own

TERMINATE = (
    "__gnu_cxx::__verbose_terminate_handler()",
    "__cxxabiv1::__terminate(void (*)())",
    "std::terminate()",
    "__cxa_throw",
    "std::__throw_out_of_range_fmt(char const*, ...)",
    "std::vector<int>::_M_range_check(unsigned long) const",
    "std::vector<int>::at(unsigned long)",
)
PANIC = (
    "std::sys::unix::abort_internal",
    "std::process::abort",
    "rust_panic",
    "std::panicking::rust_panic_with_hook::h0123456789abcdef",
    "rust_begin_unwind",
    "core::panicking::panic_fmt",
    "core::panicking::panic_bounds_check",
)
GO_PANIC = ("runtime.fatalpanic", "runtime.gopanic", "runtime.goPanicIndex")


def fine(*frames: Frame) -> str:
    key = stack_key(frames, rules())
    assert key is not None
    return key.fine


def test_the_first_function_of_the_programs_own_ends_the_walk() -> None:
    assert functions(*own("count_request", "serve_request", "serve"), *ENTRY) == ("count_request",)
    # AND a policy may want more of them
    more = SignatureRules(frames=2)
    found = functions(*own("count_request", "serve_request", "serve"), *ENTRY, more=more)
    assert found == ("count_request", "serve_request")


@pytest.mark.parametrize(
    ("above", "kept"),
    [
        # how a program ends by its own hand is left out
        (ABORT, ()),
        (libc(None, "raise", "abort"), ()),
        ([*ABORT, *libc("__assert_fail_base", "__assert_fail")], ()),
        ([*ABORT, *libc("__libc_message", "__fortify_fail", "__stack_chk_fail")], ()),
        # what the program called of a library is kept, not what that consists of
        (libc("__memmove_avx_unaligned_erms"), ("memcpy",)),
        (libc("__memcpy_ssse3"), ("memcpy",)),
        (libc("__strlen_evex", "__vfprintf_internal", "__printf_chk"), ("printf",)),
        ([*ABORT, *libc("__libc_message", "malloc_printerr", "_int_free", "free")], ("free",)),
        # runtimes of C++, Rust and Go
        ([*ABORT, *own(*TERMINATE)], ()),
        ([*ABORT, *own(*PANIC)], ()),
        (own("runtime.raise.abi0", "runtime.dieFromSignal", "runtime.crash", *GO_PANIC), ()),
        # allocators and toolkits
        (own("je_tcache_bin_flush_small", "je_free"), ("je_free",)),
        (own("tcmalloc::ThreadCache::Scavenge", "tc_free"), ("tc_free",)),
        (own("g_logv", "g_log", "g_assertion_message_expr"), ()),
        (own("QMessageLogger::fatal(char const*, ...) const", "qt_assert(char const*)"), ()),
    ],
)  # fmt: skip
def test_what_stands_above_it(above: list[Frame], kept: tuple[str, ...]) -> None:
    # GIVEN a stack in which a runtime is at work above the bug
    frames = [*above, *own("drop_twice"), *ENTRY]
    # THEN the bug is what called the runtime
    assert functions(*frames) == (*kept, "drop_twice")


def test_functions_of_library_headers_count_as_the_library() -> None:
    # GIVEN std::vector::at as a function of its own, and inlined under its bare name
    header = "/usr/include/c++/12/bits/stl_vector.h"
    compiled = [frame("std::vector<int>::at(unsigned long)", file=header)]
    inlined = [Frame(pc=1, function="at", file=header, inline=True)]
    # THEN neither is part of a signature
    assert functions(*compiled, *own("pick"), *ENTRY) == ("pick",)
    assert functions(*inlined, *own("pick"), *ENTRY) == ("pick",)


def test_a_handler_that_ends_the_program_is_not_the_bug() -> None:
    # GIVEN a handler of SIGSEGV that calls abort()
    handler = [*ABORT, *own("on_crash"), *libc("<signal handler called>")]
    # THEN what it interrupted is the bug
    assert functions(*handler, *own("count_request"), *ENTRY) == ("count_request",)
    # BUT a handler that crashes by itself is one
    frames = [*own("on_timer"), *libc("<signal handler called>"), *own("work"), *ENTRY]
    assert functions(*frames) == ("on_timer",)


def test_names_that_all_programs_have_are_written_with_their_module() -> None:
    assert functions(*own("main"), *libc("__libc_start_call_main")) == ("shop!main",)


def test_frames_without_symbols_are_places_in_a_build() -> None:
    # GIVEN a stripped program: the same code at other addresses in each run
    runs = [
        [Frame(pc=base, module=EXE, build_id=BUILD, module_offset=0x11F5)] for base in (0x55, 0x77)
    ]
    # THEN it is named by build, and not by address
    assert functions(*runs[0]) == functions(*runs[1]) == ("shop+3f2a91bc+0x11f5",)
    assert fine(*runs[0]) == fine(*runs[1])
    # AND what a library has without names says nothing
    assert functions(*libc(None, None), *own("drop"), *ENTRY) == ("drop",)


def test_an_address_that_is_nowhere_says_nothing() -> None:
    # GIVEN calls through a wild pointer, to another address each time
    calls = [[Frame(pc=pc), *own("dispatch_event"), *ENTRY] for pc in (0, 0xDEAD, 0xBEEF)]
    # THEN the caller is the bug
    assert {functions(*call) for call in calls} == {("dispatch_event",)}
    assert len({fine(*call) for call in calls}) == 1
    assert stack_key([Frame(pc=0)], rules()) is None


def test_a_stack_of_a_runtime_alone_is_named_by_its_innermost_frame() -> None:
    assert functions(*libc("start_thread", "__clone3")) == ("start_thread",)
    assert stack_key([], rules()) is None


def test_a_recursion_is_its_cycle_wherever_it_ended() -> None:
    # GIVEN a recursion over two functions that used up the stack, with any function on top
    cycle = own("parse_list", "parse_item")
    stacks = [
        [*cycle * 120],
        [*own("parse_item"), *cycle * 120],
        [*libc("__vfprintf_internal", "printf"), *cycle * 100, *own("parse_list")],
        [*own("tiny_leaf"), *own("parse_item"), *cycle * 90],
    ]
    keys = [stack_key(stack, rules()) for stack in stacks]
    # THEN all of them have one cycle, and one hash
    assert {key.cycle for key in keys if key} == {("parse_item", "parse_list")}
    assert len({key.fine for key in keys if key}) == 1
    # AND a few calls of one function in another are no such recursion
    few = stack_key([*own("parse_list", "parse_item", "parse_list", "parse_item"), *ENTRY], rules())
    assert few is not None
    assert (few.cycle, few.frames) == ((), ("parse_list",))


def test_the_hash_is_of_all_frames_and_of_no_address() -> None:
    first = [*own("leaf", "a", "main"), *libc("__libc_start_call_main")]
    moved = [Frame(pc=f.pc + 4096, function=f.function, module=f.module) for f in first]
    # THEN it stays where only addresses differ, and depth of recursion
    assert fine(*first) == fine(*moved)
    assert fine(*own("leaf", "walk", "walk")) == fine(*own("leaf", "walk", "walk", "walk"))
    # AND tells stacks apart that have the same first function
    assert fine(*first) != fine(*own("leaf", "b", "main"), *libc("__libc_start_call_main"))


def test_names_leave_out_what_says_nothing() -> None:
    frames = [*ABORT, *own("check", "walk", "walk"), *ENTRY]
    assert names(frames, rules()) == ["check", "walk", "shop!main"]


def test_rules_of_the_policy_come_beside_the_built_in_ones() -> None:
    # GIVEN a program with a panic() and wrappers of its own
    frames = [*ABORT, *own("shop_panic", "log_and_call", "list_next", "drop_twice"), *ENTRY]
    assert functions(*frames) == ("shop_panic",)
    more = SignatureRules(
        sentinels=("shop_panic",), irrelevant=("log_*",), prefixes=("shop!list_*",)
    )
    # THEN the policy tells them from its bugs
    assert functions(*frames, more=more) == ("list_next", "drop_twice")
    # AND another set of rules is known by another name
    assert rules(more).id != rules().id
    assert rules().id == rules(SignatureRules()).id


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("sentinel = []", "my.toml: Object contains unknown field `sentinel`"),
        ("sentinels = [1]", "my.toml: Expected `str`, got `int` - at `$.sentinels[0]`"),
        ("sentinels = [", "my.toml: Invalid value"),
    ],
)
def test_a_wrong_file_of_rules_is_named(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=r"my\.toml") as error:
        parse(text, "my.toml")
    assert str(error.value).startswith(problem)


def test_hostile_stacks_take_no_time() -> None:
    # GIVEN the longest stack there is, of the longest names, without order
    frames = [frame(f"{'a<' * 400}{number}", LIBC) for number in range(256)]
    started = time.process_time()
    key = stack_key(frames, rules())
    # THEN it is read in less than a second of CPU time, and what is kept is short
    assert time.process_time() - started < 1
    assert key is not None
    assert sum(map(len, key.frames)) < 2000


def test_functions_of_python_are_the_programs_own() -> None:
    # GIVEN a crash in C code below Python's own library, below a program in Python
    interpreter = "/usr/bin/python3.11"
    loop = frame("_PyEval_EvalFrameDefault", interpreter)
    library = "/usr/lib/python3.11/ctypes/__init__.py"
    frames = [
        *libc("__strlen_evex"),
        frame("ffi_call", "/usr/lib/libffi.so.8"),
        Frame(pc=9, function="string_at", file=library, line=1, language="python"),
        Frame(pc=9, function="Shop.<lambda>", file="/srv/shop.py", line=3, language="python"),
        Frame(pc=9, function="<module>", file="/srv/shop.py", line=7, language="python"),
        loop,
    ]
    # THEN the first function of the program is the signature's, with its name as it is
    key = stack_key(frames, rules())
    assert key is not None
    assert key.frames == ("strlen", "Shop.<lambda>")
    # AND one that many programs have is named with its file
    key = stack_key([frames[4], loop], rules())
    assert key is not None
    assert key.frames == ("shop.py!<module>",)
