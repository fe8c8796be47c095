"""What the policy may add to the rules of signatures, and what a stack yields. Pure values."""

from __future__ import annotations

import msgspec

ALGORITHM = 1  # another number: the same stack may have another signature
MOST_GLOBS = 100  # of each kind that a policy may add
MOST_OWN_FRAMES = 4


class SignatureRules(msgspec.Struct, frozen=True, kw_only=True):
    """Rules of the policy's own, beside the built-in ones. Globs of functions, or `module!function`
    with the file name of the module."""

    sentinels: tuple[str, ...] = ()
    irrelevant: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    common: tuple[str, ...] = ()
    frames: int = 1  # so many functions of the program's own end the walk


class StackKey(msgspec.Struct, frozen=True, kw_only=True):
    """What a signature takes from the frames of a thread."""

    frames: tuple[str, ...]  # the functions of the readable key, innermost first
    cycle: tuple[str, ...] = ()  # of a deep recursion: its functions
    fine: str  # hash of all frames, 16 hex digits
    rules: str  # which rules made it, 8 hex digits
