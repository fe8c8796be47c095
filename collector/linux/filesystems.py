"""Which files never keep their readers waiting for another process.

A file of FUSE, or of a server (NFS, 9p), is as slow as somebody likes; so may even its attributes
be. Whether a file is such a one is told by the device of its file system, which /proc/PID/maps
names, without a look at the file: /proc/self/mountinfo (proc(5)) says what each device of our own
mount namespace is. One that is not mounted there counts as foreign.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct

from collector.linux import procfs

_OWN = frozenset(
    b"ext2 ext3 ext4 xfs btrfs f2fs bcachefs zfs tmpfs ramfs devtmpfs hugetlbfs squashfs erofs "
    b"iso9660 vfat exfat ntfs3 overlay".split()
)
_SYS_STATX, _SYS_OPENAT2 = 332, 437  # x86-64; the second is the same everywhere
_AT_EMPTY_PATH, _AT_STATX_DONT_SYNC, _STATX_BASIC = 0x1000, 0x4000, 0x7FF  # <linux/stat.h>
# <linux/openat2.h>; the last: only what needs no question to a file system (Linux >= 5.12)
_RESOLVE_NO_MAGICLINKS, _RESOLVE_IN_ROOT, _RESOLVE_CACHED = 0x02, 0x10, 0x20
_RESOLVE_NO_SYMLINKS, _RESOLVE_BENEATH = 0x04, 0x08
_STATX = struct.Struct("<28xH2xQ88x8xII112x")  # mode, inode, device's major and minor
_MAX_MOUNTS = 64 << 20  # bytes

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    """struct open_how of <linux/openat2.h>."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def own_devices() -> frozenset[int]:
    """Devices (major << 20 | minor) of mounted file systems that are the kernel's own."""
    found = set()
    for line in (procfs.read("/proc/self/mountinfo", _MAX_MOUNTS) or b"").splitlines():
        words = line.split()
        if b"-" in words[6:] and words[words.index(b"-", 6) + 1] in _OWN:
            major, _, minor = words[2].partition(b":")
            found.add(int(major) << 20 | int(minor))
    return frozenset(found)


def open_beneath(root_fd: int, path: str) -> int:
    """A descriptor (O_PATH) of what is at a path seen from the folder `root_fd`, links and all.

    OSError as openat2(2) (Linux 5.6); its file systems may keep us waiting.
    """
    return _open(root_fd, path, os.O_PATH, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)


def read_beneath(root_fd: int, path: str, limit: int) -> bytes | None:
    """A plain file below the folder `root_fd` to which no link leads; None if there is none, or it
    is longer than `limit` bytes. Its file system may keep us waiting."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY
    try:
        fd = _open(root_fd, path, flags, _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return None
            data = procfs.read_all(fd, limit + 1)
        finally:
            os.close(fd)
    except OSError:
        return None
    return data if len(data) <= limit else None


def _open(root_fd: int, path: str, flags: int, resolve: int) -> int:
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve)
    size = ctypes.c_size_t(ctypes.sizeof(how))
    found = int(_libc.syscall(_SYS_OPENAT2, root_fd, os.fsencode(path), ctypes.byref(how), size))
    if found < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), path)
    return found


def open_cached(root_fd: int, path: str, device: int, inode: int) -> int | None:
    """A descriptor to read a mapped file of an own device; None if that is not at `path`.

    path: seen from the folder `root_fd`. No file system is asked anything on the way: that a file
    is mapped keeps its path in the kernel's memory.
    """
    flags = os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW
    how = _OpenHow(flags, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS | _RESOLVE_CACHED)
    size = ctypes.c_size_t(ctypes.sizeof(how))
    found = _libc.syscall(_SYS_OPENAT2, root_fd, os.fsencode(path), ctypes.byref(how), size)
    if found < 0:
        return None
    try:
        if not _is_file(found, device, inode):
            return None
        # not one whose owner holds a lease on it (fcntl(2)): that would be waited for
        return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    finally:
        os.close(found)


def _is_file(fd: int, device: int, inode: int) -> bool:
    """By what the kernel remembers of it: another file may be one of FUSE."""
    about = ctypes.create_string_buffer(_STATX.size)
    flags = _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC
    if _libc.syscall(_SYS_STATX, fd, b"", flags, _STATX_BASIC, about):
        return False
    mode, number, major, minor = _STATX.unpack(about.raw)
    return stat.S_ISREG(mode) and (number, major << 20 | minor) == (inode, device)
