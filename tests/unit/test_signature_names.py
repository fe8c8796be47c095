"""One name for one function, however it was compiled."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.signature.names import normal


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        # clones, entries of the PLT, versions
        ("parse.constprop.0", "parse"),
        ("parse.isra.0.cold", "parse"),
        ("parse.part.12", "parse"),
        ("parse.llvm.1234567", "parse"),
        ("ns::f(int) [clone .isra.0] [clone .cold]", "ns::f"),
        ("memcpy@plt", "memcpy"),
        ("memcpy@@GLIBC_2.14", "memcpy"),
        # C++
        ("void ns::Pool<int>::drop<char>(int) const", "ns::Pool::drop"),
        ("(anonymous namespace)::f(int)", "(anonymous namespace)::f"),
        ("f(int (*)(char), std::function<void (int)>)", "f"),
        ("std::string::at[abi:cxx11](unsigned long)", "std::string::at"),
        ("std::vector<int, std::allocator<int> >::_M_range_check(unsigned long) const",
         "std::vector::_M_range_check"),
        ("decltype(auto) ns::g<int>(int&&)", "ns::g"),
        ("non-virtual thunk to X::f()", "X::f"),
        ("main::{lambda(int)#1}::operator()(int) const", "main::{lambda}::operator()"),
        ("operator new(unsigned long)", "operator new"),
        ("ns::A::operator()(int) const", "ns::A::operator()"),
        ("A::operator bool() const", "A::operator bool"),
        ("bool operator< <int>(A const&, A const&)", "operator<"),
        ("std::ostream& std::operator<< <std::char_traits<char> >(std::ostream&, char const*)",
         "std::operator<<"),
        ("Smart<A>::operator->() const", "Smart::operator->"),
        # Rust
        ("core::ptr::drop_in_place::h0123456789abcdef", "core::ptr::drop_in_place"),
        ("<alloc::vec::Vec<T,A> as core::ops::drop::Drop>::drop", "alloc::vec::Vec::drop"),
        ("shop[1a2b3c]::cart::add::<u8>", "shop::cart::add"),
        ("shop::run::{{closure}}", "shop::run::{closure}"),
        ("shop::run::{closure#2}", "shop::run::{closure}"),
        # Go
        ("main.(*Server).handle", "main.(*Server).handle"),
        ("main.main.func1", "main.main.func1"),
        ("pkg.Map[go.shape.int]", "pkg.Map"),
        # none of these
        ("<signal handler called>", "<signal handler called>"),
        ("count_request", "count_request"),
        ("a<b", "a<b"),
        ("x(((", "x((("),
    ],
)  # fmt: skip
def test_a_name_without_what_differs_between_builds(name: str, bare: str) -> None:
    assert normal(name) == bare


@given(st.text(alphabet="abo:<>(){}[]#. operator->*&'0", max_size=2000))
def test_any_text_has_a_bounded_name(name: str) -> None:
    # GIVEN any text at all, THEN it has a name, which is no longer and stays what it is
    bare = normal(name)
    assert len(bare) <= 1024
    assert bool(bare) == bool(name)


def test_deep_brackets_take_no_time() -> None:
    # GIVEN names that are made to be slow, THEN they are read in one pass or left as they are
    for name in ("<" * 5000, "a<" * 2000 + ">" * 2000, "(" * 1000 + ")" * 1000, "<a as " * 500):
        assert len(normal(name)) <= 1024
