"""What a policy wants redacted: `redact` of a rule, docs/redaction.md."""

from __future__ import annotations

import msgspec

MAPPINGS = "mappings"  # names under which is counted what is no pattern's
ENVIRONMENT = "environment"
ARGUMENTS = "arguments"
OWN_NAMES = (MAPPINGS, ENVIRONMENT, ARGUMENTS)

MOST_GLOBS = 64  # of each kind
MOST_PATTERNS = 32
MOST_REGEX = 1024  # characters
REACH = 16 << 10  # bytes; a longer match may be redacted in part


class Pattern(msgspec.Struct, frozen=True, kw_only=True):
    """A regular expression, as RE2 has them, over bytes. With a group, that is what is redacted."""

    name: str
    regex: str


class Redact(msgspec.Struct, frozen=True, kw_only=True):
    """What is zeroed in what is written of a process, and hidden in its record."""

    environment: tuple[str, ...] = ()  # globs of names of variables
    arguments: tuple[str, ...] = ()  # globs of arguments
    patterns: tuple[Pattern, ...] = ()
    mappings: tuple[str, ...] = ()  # kinds and globs, as in `memory.exclude`
    time: float = 60.0  # seconds of a CPU for one core; what was not looked through then is zeroed

    @property
    def texts(self) -> bool:
        """Whether something is looked for wherever it stands."""
        return bool(self.environment or self.arguments or self.patterns)

    @property
    def anything(self) -> bool:
        return self.texts or bool(self.mappings)

    @property
    def uncounted(self) -> dict[str, int | None]:
        """The rules by name, with nothing counted: for a note that cannot be changed later."""
        names = [pattern.name for pattern in self.patterns]
        names += [ENVIRONMENT] * bool(self.environment) + [ARGUMENTS] * bool(self.arguments)
        names += [MAPPINGS] * bool(self.mappings)
        return dict.fromkeys(names)
