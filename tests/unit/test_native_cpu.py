"""What the native library says of this CPU, against what the kernel says of it."""

from __future__ import annotations

import ctypes
import platform
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.arch.xsave import HEADER_END, Layout, layout_note
from collector.native import cpu
from collector.native.build import build_cpu

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="x86-64 only")


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The library, built from the source."""
    path = build_cpu(tmp_path)
    monkeypatch.setattr(cpu, "find", lambda name: tmp_path / name)
    cpu.probe.cache_clear()
    yield path
    cpu.probe.cache_clear()


def of_cpuinfo(name: str) -> str:
    found = re.search(rf"^{name}\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def test_cpuid_names_the_vendor(library: Path) -> None:
    out = (ctypes.c_uint32 * 4)()
    ctypes.CDLL(str(library)).coreward_cpuid(0, 0, out)
    _, b, c, d = out
    assert b"".join(w.to_bytes(4, "little") for w in (b, d, c)).decode() == of_cpuinfo("vendor_id")


def test_the_layout_has_the_components_that_the_kernel_uses(library: Path) -> None:
    found = cpu.xsave_layout()
    if "xsave" not in of_cpuinfo("flags").split():
        assert isinstance(cpu.probe(), cpu.Unavailable)
        return
    assert isinstance(found, Layout)
    assert found.features & 0b11 == 0b11  # x87 and SSE
    for flag, number in (("avx", 2), ("avx512f", 5), ("avx512f", 6), ("ospke", 9)):
        assert bool(found.features >> number & 1) == (flag in of_cpuinfo("flags").split())
    places = [(c.offset, c.offset + c.size) for c in found.components if c.offset]
    assert min(start for start, _ in places) == HEADER_END
    user = [c for c in found.components if found.features >> c.number & 1]
    assert found.size == max(c.offset + c.size for c in user)
    assert len(layout_note(found)) == 16 * len(user)
    assert found.mxcsr_mask & 0xFFBF == 0xFFBF


def test_without_the_library_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "find", lambda _: None)
    cpu.probe.cache_clear()
    assert cpu.probe() == cpu.Unavailable("coreward-cpu.so was not built: run `make setup`")
    assert cpu.xsave_layout() is None
    cpu.probe.cache_clear()
