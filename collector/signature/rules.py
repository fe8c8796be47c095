"""The rules by which a stack becomes a signature: files of data, one for each runtime.

    sentinels   where a program gives up (abort, raise, panic): what counts starts below
    irrelevant  says nothing about a bug, wherever it is: left out
    prefixes    kept, but any program may fail in it: the walk goes on
    common      a name that many programs have: written with its module
    files       source files whose functions are irrelevant, also where they are inlined
    aliases     glob -> the name that is written instead; `*` stands for what the glob's `*` matched

Each but the last two is a list of globs of function names, or of `module!function` with the file
name of the module; a function without a name is `module!+`.
"""

from __future__ import annotations

import fnmatch
import functools
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

import msgspec

from collector.signature.digest import digest
from collector.signature.types import ALGORITHM, SignatureRules

MOST_FRAMES = 6  # that a readable key names
_PLAIN = re.compile(r"[^*?\[!]+")


class RuleFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of rules."""

    sentinels: list[str] = []
    irrelevant: list[str] = []
    prefixes: list[str] = []
    common: list[str] = []
    files: list[str] = []
    aliases: dict[str, str] = {}


class Globs:
    """Whether a function is one of many; names without wildcards are looked up at once.

    Nothing is compiled before it is needed: a list of signatures needs only the rules' name."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns = list(patterns)

    @functools.cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(p for p in self._patterns if _PLAIN.fullmatch(p))

    @functools.cached_property
    def _wild(self) -> re.Pattern[str] | None:
        return _compiled(p for p in self._patterns if p not in self._names and "!" not in p)

    @functools.cached_property
    def _placed(self) -> re.Pattern[str] | None:
        return _compiled(p for p in self._patterns if p not in self._names and "!" in p)

    def has(self, name: str, module: str = "") -> bool:
        """name: of the function, or "+". module: the file name."""
        if name in self._names or (self._wild is not None and self._wild.fullmatch(name)):
            return True
        return self._placed is not None and bool(self._placed.fullmatch(f"{module}!{name}"))


class Rules:
    """All rules in force. `id` tells one set from another."""

    def __init__(self, files: Iterable[RuleFile], more: SignatureRules) -> None:
        files = list(files)
        self.sentinels = Globs([*_all(files, "sentinels"), *more.sentinels])
        self.irrelevant = Globs([*_all(files, "irrelevant"), *more.irrelevant])
        self.prefixes = Globs([*_all(files, "prefixes"), *more.prefixes])
        self.common = Globs([*_all(files, "common"), *more.common])
        self.own_frames = more.frames
        self._built = files
        whole = msgspec.json.encode([ALGORITHM, files, more])
        self.id = digest(whole.decode(), 4)

    @functools.cached_property
    def _files(self) -> re.Pattern[str] | None:
        return _compiled(_all(self._built, "files"))

    @functools.cached_property
    def _aliased(self) -> re.Pattern[str] | None:
        return _compiled(glob for one in self._built for glob in one.aliases)

    @functools.cached_property
    def _aliases(self) -> list[tuple[re.Pattern[str], str]]:
        return [
            (re.compile(fnmatch.translate(glob).replace(".*", "(.*)", 1)), name)
            for one in self._built
            for glob, name in one.aliases.items()
        ]

    def alias(self, name: str) -> str:
        """The one name of a function that has several."""
        if self._aliased is None or not self._aliased.match(name):
            return name  # as nearly all do
        for glob, meant in self._aliases:
            if found := glob.match(name):
                return meant.replace("*", found[1]) if "*" in meant else meant
        return name

    def is_library_source(self, file: str | None) -> bool:
        return file is not None and self._files is not None and bool(self._files.fullmatch(file))


@functools.lru_cache(maxsize=4)
def rules(more: SignatureRules = SignatureRules()) -> Rules:  # noqa: B008 - it is immutable
    """The built-in rules, and those that the policy adds."""
    return Rules(_built_in(), more)


@functools.cache
def _built_in() -> tuple[RuleFile, ...]:
    folder = Path(__file__).parent / "rules"  # importlib.resources takes 10 ms more
    names = sorted(file.name for file in folder.iterdir() if file.name.endswith(".toml"))
    return tuple(parse((folder / name).read_text("utf-8"), name) for name in names)


def parse(text: str, source: str) -> RuleFile:
    """The rules of a file. ValueError names the file, and the key that is wrong."""
    try:
        return msgspec.convert(tomllib.loads(text), RuleFile)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ValueError(f"{source}: {error}") from None


def _all(files: Iterable[RuleFile], kind: str) -> list[str]:
    return [glob for one in files for glob in getattr(one, kind)]


def _compiled(globs: Iterable[str]) -> re.Pattern[str] | None:
    parts = [fnmatch.translate(glob) for glob in globs]
    return re.compile("|".join(parts)) if parts else None
