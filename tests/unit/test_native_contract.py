"""collector/native/handoff.h and its mirror in Python agree on every offset, size and constant."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

import pytest

from collector.handoff import pipe
from collector.linux import memory
from collector.native import contract, library

HEADER = Path(contract.__file__).with_name("handoff.h")

STRUCTURES: dict[str, type[ctypes.Structure]] = {
    "pin": contract.Pin,
    "hand": contract.Hand,
    "level": contract.Level,
    "bidder": contract.Bidder,
    "account": contract.Account,
    "orders": contract.Orders,
    "bytes": contract.Bytes,
    "taken": contract.Taken,
    "word": contract.Word,
    "shared": contract.Shared,
}
CONSTANTS = {
    "PINS": contract.PINS,
    "HANDS": contract.HANDS,
    "TAKERS": contract.TAKERS,
    "BIDDERS": contract.BIDDERS,
    "HELPER_PATH": contract.HELPER_PATH,
    "BIDDER_UIDS": contract.BIDDER_UIDS,
    "BIDDER_COMM": contract.BIDDER_COMM,
    "BIDDER_PATH": contract.BIDDER_PATH,
    "OWNER_DEVICE": contract.OWNER_DEVICE,
    "OWNER_BYTES": contract.OWNER_BYTES,
    "WHY": contract.WHY,
    "LINE": contract.LINE,
    "PIN_MS": contract.PIN_MS,
    "MAX_CMDLINE": contract.MAX_CMDLINE,
    "DEPTH": contract.DEPTH,
    "LIMITS": contract.LIMITS,
    "LEVELS": contract.LEVELS,
    "HANDFUL": contract.HANDFUL,
    "DIGITS": pipe.DIGITS,
    "NO_LIMIT": memory.NO_LIMIT,
    "TEXTS": len(contract.TEXTS),
    "FDS": len(contract.FILES),
    "EMPTY": contract.EMPTY,
    "READY": contract.READY,
    "TAKEN": contract.TAKEN,
    **{answer.name: int(answer) for answer in contract.Answer},
    "sizeof(struct word)": contract.WORD.size,
    "sizeof(struct shared)": contract.SHARED.size,
}


def believed() -> dict[str, int]:
    """What the C compiler is asked -> what Python believes."""
    found = dict(CONSTANTS)
    for name, structure in STRUCTURES.items():
        found[f"sizeof(struct {name})"] = ctypes.sizeof(structure)
        for field, *_ in structure._fields_:
            place = getattr(structure, field)
            found[f"offsetof(struct {name}, {field})"] = place.offset
            found[f"sizeof(((struct {name} *)0)->{field})"] = place.size
    return found


def compiled(header: Path, folder: Path) -> dict[str, int]:
    """What the compiler says of each expression."""
    lines = "".join(f'\tprintf("%lld\\n", (long long)({text}));\n' for text in believed())
    source, program = folder / "contract.c", folder / "contract"
    source.write_text(
        f'#include <stddef.h>\n#include <stdio.h>\n#include "{header}"\n'
        f"int main(void)\n{{\n{lines}\treturn 0;\n}}\n"
    )
    # -Wpadded: a hole between two fields would be one that only one side knows of
    command = ["gcc", "-Wall", "-Wpadded", "-Werror", str(source), "-o", str(program)]
    subprocess.run(command, check=True)
    printed = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    return dict(zip(believed(), map(int, printed.split()), strict=True))


def names_of(text: str, what: str) -> list[str]:
    """The fields of a struct, or the names of an enum, in their order."""
    body = re.search(rf"^{what} \{{(.*?)\}};", text, re.S | re.M)
    assert body is not None, what
    plain = re.sub(r"/\*.*?\*/", "", body[1], flags=re.S)
    return re.findall(r"(\w+)(?:\[\w+\])?\s*(?:= -?\d+\s*)?(?:[;,]|$)", plain.strip())


def test_offsets_sizes_and_constants_are_the_compilers(tmp_path: Path) -> None:
    assert compiled(HEADER, tmp_path) == believed()


@pytest.mark.parametrize("name", STRUCTURES)
def test_no_field_is_missing(name: str) -> None:
    fields = [field for field, *_ in STRUCTURES[name]._fields_]
    assert names_of(HEADER.read_text(), f"struct {name}") == fields


def test_texts_and_files_are_in_the_order_of_the_header() -> None:
    text = HEADER.read_text()
    known = {"FILTER": "coredump_filter"}
    for kind, expected in (("text", contract.TEXTS), ("file", contract.FILES)):
        names = names_of(text, f"enum {kind}")[:-1]
        assert tuple(known.get(name, name.lower()) for name in names) == expected


def test_each_function_has_its_types() -> None:
    # ctypes would guess them, and pass structures by value
    names = re.findall(r"^COREWARD_API .*?(coreward_\w+)\(", HEADER.read_text(), re.MULTILINE)
    assert sorted(names) == sorted(library.FUNCTIONS)


@pytest.mark.parametrize(
    ("one", "other"),
    [("pidfd", "pid"), ("accepted_ns", "released_ns"), ("pin", "begun"), ("threads", "mappings")],
)
def test_fields_that_change_places_are_noticed(tmp_path: Path, one: str, other: str) -> None:
    text = HEADER.read_text()
    start = text.index("struct taken {")
    head, body = text[:start], text[start:]
    body = re.sub(
        rf"\b({one}|{other});", lambda m: (other if m[1] == one else one) + ";", body, count=2
    )
    (tmp_path / "swapped.h").write_text(head + body)
    found = compiled(tmp_path / "swapped.h", tmp_path)
    wrong = {name for name, value in found.items() if value != believed()[name]}
    assert wrong == {f"offsetof(struct taken, {name})" for name in (one, other)}
