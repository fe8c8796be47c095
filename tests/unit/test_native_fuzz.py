"""What the native part parses, fuzzed for five seconds in all; `make fuzz` takes a minute each."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS, build, coverage, fuzz, is_available

if not is_available():
    pytest.skip("needs clang with libFuzzer: libclang-rt-14-dev", allow_module_level=True)


@pytest.mark.parametrize("target", TARGETS)
def test_no_input_breaks_it(target: str, tmp_path: Path) -> None:
    found = fuzz(build(target, tmp_path), target, tmp_path, seconds=1)
    assert found.ok, found.output
    assert found.runs > len(TARGETS[target]())


@pytest.mark.skipif(shutil.which("llvm-cov") is None, reason="needs llvm")
def test_what_the_inputs_reach(tmp_path: Path) -> None:
    fuzz(build("line", tmp_path), "line", tmp_path, seconds=1)
    reached = coverage("line", tmp_path)
    assert reached.functions >= 1
    assert 0 < reached.entered <= reached.regions
