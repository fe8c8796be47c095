"""Short hashes of text, the same everywhere."""

from __future__ import annotations

try:  # hashlib would load OpenSSL: megabytes, in each process that imports it
    from _blake2 import blake2b
except ImportError:  # an interpreter without the built-in module
    from hashlib import blake2b


def digest(text: str, size: int) -> str:
    """Of so many bytes, as hexadecimal digits."""
    return blake2b(text.encode("utf-8", "backslashreplace"), digest_size=size).hexdigest()
