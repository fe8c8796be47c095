"""What the C compiler makes of the headers that BPF and its readers in Python share."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path


def values_of(expressions: Iterable[str], folder: Path, *headers: Path) -> dict[str, int]:
    """The value of each expression of C, by its text. The program is made in `folder`."""
    texts = list(expressions)
    lines = "".join(f'\tprintf("%zu\\n", (size_t)({text}));\n' for text in texts)
    includes = "".join(f'#include "{header}"\n' for header in headers)
    source = folder / "contract.c"
    source.write_text(
        "#include <linux/types.h>\n#include <stddef.h>\n#include <stdio.h>\n"
        f"{includes}int main(void)\n{{\n{lines}\treturn 0;\n}}\n"
    )
    program = folder / "contract"
    # -Wpadded: padding that the compiler inserts would carry kernel memory to the reader
    command = ["cc", "-Wall", "-Wpadded", "-Werror", str(source), "-o", str(program)]
    subprocess.run(command, check=True)
    printed = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    return dict(zip(texts, map(int, printed.split()), strict=True))
