"""POSIX access control lists with one named user: acl(5), system.posix_acl_access.

The value of the attribute is a version and entries of tag, permissions and id, little endian
(<linux/posix_acl_xattr.h>).
"""

from __future__ import annotations

import os
import struct

READ, SEARCH = 4, 1
WRITE = 2
_ATTRIBUTE = "system.posix_acl_access"
_VERSION = struct.pack("<I", 2)
_ENTRY = struct.Struct("<HHI")
_USER_OBJ, _USER, _GROUP_OBJ, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x10, 0x20
_NO_ID = 0xFFFFFFFF


def grant(fd: int, uid: int, permissions: int, *, owner: int) -> None:
    """Let this user have these permissions on an open file, beside `owner` for its owner; nobody
    else has any. OSError, also where the file system has no such lists."""
    entries = (
        (_USER_OBJ, owner, _NO_ID),
        (_USER, permissions, uid),
        (_GROUP_OBJ, 0, _NO_ID),
        (_MASK, permissions, _NO_ID),
        (_OTHER, 0, _NO_ID),
    )
    os.setxattr(fd, _ATTRIBUTE, _VERSION + b"".join(_ENTRY.pack(*entry) for entry in entries))
