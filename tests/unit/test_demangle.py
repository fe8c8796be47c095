"""Names of compilers as people wrote them."""

from __future__ import annotations

import pytest

from collector.explain.demangle import demangle


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("_ZN4shop5Order5placeEi", "shop::Order::place(int)"),
        ("_ZN6victim12with_closure17h0123456789abcdefE", "victim::with_closure"),
        (
            "_RINvCs5ZWYVcWrHHT_6victim12with_closureNCNvB2_4main0EB2_",
            "victim::with_closure::<victim::main::{closure#0}>",
        ),
        ("$s4main3fooyyF", "main.foo() -> ()"),
        # those of C are as they are, and so is what cannot be one
        ("main", "main"),
        ("_Zbad", "_Zbad"),
        ("_R" + "N" * 1_000, "_R" + "N" * 1_000),
        ("_Z" + "1" * 2_000, "_Z" + "1" * 2_000),
        ("_ZN4shop\udcff", "_ZN4shop\udcff"),
        ("", ""),
    ],
)
def test_names(name: str, shown: str) -> None:
    assert demangle(name) == shown
