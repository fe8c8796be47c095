"""The walk of a hand-off in docs/how-it-works.md: each function is there, and is named once."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| \w* ?\| `([\w.]+)(\(\))?` in ([\w./]+) \|", re.MULTILINE)


def test_the_walk_names_functions_that_exist_once_each() -> None:
    rows = ROW.findall((ROOT / "docs" / "how-it-works.md").read_text())
    assert len(rows) > 20
    assert len({(function, file) for function, _, file in rows}) == len(rows)
    for function, in_c, file in rows:
        source = (ROOT / "collector" / ("native" if in_c else "") / file).read_text()
        name = function.rpartition(".")[2]
        pattern = rf"^\w[^;\n]*\b{name}\([^;]*\n{{" if in_c else rf"^ *def {name}\("
        assert re.search(pattern, source, re.MULTILINE), f"{function} is not in {file}"
