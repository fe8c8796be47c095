"""Names of records: 16 hex digits that are the same for the same death, however it was learnt.

Nothing here touches the disk. An id is also a folder's name, so whatever comes from outside
passes `checked` before it becomes part of a path.
"""

from __future__ import annotations

import re

try:  # hashlib would load OpenSSL, 3.6 MB of an agent that should stay under 35
    from _blake2 import blake2b
except ImportError:  # an interpreter without the built-in module
    from hashlib import blake2b

from collector.errors import StoreError
from collector.model import ProcessKey

ID_DIGITS = 16
_ID = re.compile(r"[0-9a-f]{16}", re.ASCII)


def record_id(boot_id: str, key: ProcessKey) -> str:
    """The id of the death of process `key` in the boot `boot_id` (as /proc gives it, random(4))."""
    text = f"{boot_id.strip()} {key.pid} {key.start_ns}"
    return blake2b(text.encode(), digest_size=ID_DIGITS // 2).hexdigest()


def is_id(text: str) -> bool:
    """Whether this is a whole id: 16 lowercase hex digits."""
    return _ID.fullmatch(text) is not None


def checked(text: str) -> str:
    """`text` if it is a whole id; StoreError otherwise (it would become part of a path)."""
    if not is_id(text):
        raise StoreError(f"{text!r} is not a record's id: an id is {ID_DIGITS} hex digits")
    return text
