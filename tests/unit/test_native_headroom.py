"""Room in memory cgroups: the native part and Python see the same in the same files."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from collector.linux.memory import LevelKey, read_levels
from collector.native import contract
from collector.native.build import LIBRARY_SOURCES

FOLDER = Path(contract.__file__).parent
MAIN = r"""
#include <stdio.h>
#include <stdlib.h>
#include "native.h"

int main(int argc, char **argv)
{
    static struct taken t;

    if (argc != 3 || !find_levels(&t, argv[1], strtoll(argv[2], NULL, 10)))
        return 1;
    for (int i = 0; i < t.limits; i++)
        printf("%llu %llu %lld\n", (unsigned long long)t.levels[i].device,
               (unsigned long long)t.levels[i].inode, (long long)t.levels[i].bytes);
    return 0;
}
"""
PLENTY = 1 << 62
DEEP = "/".join(["d"] * (contract.DEPTH + 1))


class Tree:
    """A cgroup file system of files, and both ways to read it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "cgroup"
        (folder / "main.c").write_text(MAIN)
        self._program = folder / "main"
        sources = [str(path) for path in LIBRARY_SOURCES if path.stem in ("headroom", "proc")]
        flags = ["-D_GNU_SOURCE", f'-DCGROUPS="{self.root}"', f"-I{FOLDER}"]
        flags.append(f"-I{FOLDER.parents[1] / 'bpf'}")
        # what these two files call of the others
        (folder / "rest.c").write_text(
            "#include <unistd.h>\n#include <native.h>\nvoid forget(int fd) { close(fd); }\n"
        )
        command = ["gcc", *flags, str(folder / "main.c"), str(folder / "rest.c"), *sources]
        subprocess.run([*command, "-o", str(self._program)], check=True)

    def group(self, path: str, **files: int | str) -> Path:
        """A cgroup; the names of its files have "_" for their first "."."""
        folder = self.root / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name.replace("_", ".", 1)).write_text(f"{text}\n")
        return folder

    def native(self, groups: str, enough: int = PLENTY) -> list[tuple[LevelKey, int]] | None:
        command = [str(self._program), groups, str(enough)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return None
        lines = [list(map(int, line.split())) for line in done.stdout.splitlines()]
        return [(LevelKey(device, inode), room) for device, inode, room in lines]

    def python(self, groups: str) -> list[tuple[LevelKey, int]] | None:
        levels = read_levels(groups.encode(), str(self.root))
        return None if levels is None else [(level.key, level.headroom) for level in levels]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def v2(
    limit: int | str, used: int, high: int | str = "max", cache: int = 0
) -> dict[str, int | str]:
    return {
        "memory_max": limit,
        "memory_high": high,
        "memory_current": used,
        "memory_stat": f"anon 9\ninactive_file {cache}\nactive_file 7",
    }


def v1(limit: int, used: int, cache: int = 0) -> dict[str, int | str]:
    return {
        "memory_limit_in_bytes": limit,
        "memory_usage_in_bytes": used,
        "memory_stat": f"inactive_file 5\ntotal_cache 3\ntotal_inactive_file {cache}",
    }


@pytest.mark.parametrize(
    ("groups", "room"),
    [
        ("0::/free\n", []),  # no limit anywhere
        ("0::/a/b\n", [400, 250]),  # that of `b` is its `high`; that of `a` counts what is cached
        ("0::/a\n", [250]),
        ("0::/a/b/\n1:name=systemd:/a\n", [400, 250]),
        ("5:cpu,memory:/v1/x\n0::/free\n", [70, 1000]),
        ("5:memory:/v1\n", [1000]),
        ("5:memory:/v1/none\n0::/a\n", [1000, 250]),
        ("0::/full\n", [0]),
        ("0::/../a\n", None),
        ("0::/gone\n", None),
        ("5:memory:/gone\n0::/a\n", None),
        ("0::/unread\n", None),
    ],
)
def test_the_room_at_each_level(tree: Tree, groups: str, room: list[int] | None) -> None:
    for base in ("unified/", "memory/"):
        tree.group(base)
    tree.group("unified/free", **v2("max", 10))
    tree.group("unified/a", **v2(1000, 800, cache=50))
    tree.group("unified/a/b", **v2(2000, 500, high=900))
    tree.group("unified/full", **v2(1000, 1000))
    tree.group("unified/unread", memory_max=1000)
    tree.group("memory/v1", **v1(3000, 2500, cache=500))
    tree.group("memory/v1/x", **v1(100, 40, cache=10))
    tree.group("memory/v1/none", **v1(9223372036854771712, 40))
    found = tree.native(groups)
    if groups.startswith("0::/unread"):  # Python calls it full, and asks nobody
        assert found is None
        return
    assert found == tree.python(groups)
    assert (None if found is None else [size for _, size in found]) == room


def test_v2_alone(tree: Tree) -> None:
    tree.group("pod/container", **v2(1 << 40, 1 << 30))
    tree.group("pod", **v2("max", 1 << 30))
    groups = "0::/pod/container\n"
    found = tree.native(groups)
    assert found == tree.python(groups)
    assert found is not None and [room for _, room in found] == [(1 << 40) - (1 << 30)]


def test_what_can_be_reclaimed_is_looked_up_only_where_room_is_short(tree: Tree) -> None:
    tree.group("a", **v2(1000, 800, cache=50))
    for enough, room in ((200, 200), (201, 250)):
        found = tree.native("0::/a\n", enough)
        assert found is not None and [size for _, size in found] == [room]


def test_more_levels_than_there_is_place_for_are_unknown(tree: Tree) -> None:
    for depth in range(1, contract.DEPTH + 2):
        tree.group("/".join(["d"] * depth), **v2(1000, 1))
    assert tree.native(f"0::/{DEEP}\n") is None
    fitting = tree.native(f"0::/{DEEP[:-2]}\n")
    assert fitting is not None and len(fitting) == contract.DEPTH
