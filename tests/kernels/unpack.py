"""What is inside a kernel package: the ELF file in a vmlinuz, its types, the modules' order.

Bytes and text in, bytes and text out; it neither runs programs nor looks for files.
"""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath

import zstandard
from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile


class KernelError(Exception):
    """A kernel cannot be had, unpacked or booted; the message is one line for the user."""


# Offsets in a bzImage (boot protocol 2.08; Documentation/arch/x86/boot.rst in Linux)
SETUP_SECTORS = 0x1F1  # u8, sectors of 512 bytes behind the first one; 0 means 4
HEADER_MAGIC = 0x202  # "HdrS"
PROTOCOL = 0x206  # u16, major << 8 | minor
PAYLOAD_OFFSET = 0x248  # u32, bytes, from the start of the protected-mode code
PAYLOAD_LENGTH = 0x24C  # u32, bytes
SECTOR = 512


def _xz(data: bytes) -> bytes:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(data)


def _lzma(data: bytes) -> bytes:
    return lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress(data)


def _gzip(data: bytes) -> bytes:
    return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(data)


def _bzip2(data: bytes) -> bytes:
    return bz2.BZ2Decompressor().decompress(data)


def _zstd(data: bytes) -> bytes:
    return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj().decompress(data)


# First bytes, what they mean, how it is undone. Each ignores bytes behind the end of its data:
# the kernel's build appends the unpacked size.
_FORMATS: tuple[tuple[bytes, str, Callable[[bytes], bytes]], ...] = (
    (b"\xfd7zXZ\0", "xz", _xz),
    (b"\x28\xb5\x2f\xfd", "zstd", _zstd),
    (b"\x1f\x8b\x08", "gzip", _gzip),
    (b"BZh", "bzip2", _bzip2),
    (b"\x5d\0\0", "lzma", _lzma),
)
_ERRORS = (lzma.LZMAError, zlib.error, zstandard.ZstdError, OSError, EOFError)


def decompress(data: bytes, what: str) -> bytes:
    """`data` without its compression; as it is if it is an ELF file. `what` names it in errors."""
    if data.startswith(b"\x7fELF"):
        return data
    for magic, name, undo in _FORMATS:
        if data.startswith(magic):
            try:
                return undo(data)
            except _ERRORS as error:
                raise KernelError(f"{what}: the {name} data is damaged: {error}") from error
    raise KernelError(f"{what}: unknown compression (first bytes {data[:6].hex()})")


def payload(vmlinuz: bytes, what: str) -> bytes:
    """The compressed kernel in a bzImage, found by the fields of its boot header."""

    def number(offset: int, size: int) -> int:
        return int.from_bytes(vmlinuz[offset : offset + size], "little")

    if vmlinuz[HEADER_MAGIC : HEADER_MAGIC + 4] != b"HdrS" or number(PROTOCOL, 2) < 0x208:
        raise KernelError(f"{what}: not a bzImage of boot protocol 2.08 or later")
    code = (1 + (number(SETUP_SECTORS, 1) or 4)) * SECTOR
    start = code + number(PAYLOAD_OFFSET, 4)
    end = start + number(PAYLOAD_LENGTH, 4)
    if not start < end <= len(vmlinuz):
        raise KernelError(f"{what}: its payload [{start}, {end}) is not within its size")
    return vmlinuz[start:end]


def vmlinux(vmlinuz: bytes, what: str) -> bytes:
    """The kernel's ELF file inside a bzImage."""
    found = decompress(payload(vmlinuz, what), what)
    if not found.startswith(b"\x7fELF"):
        raise KernelError(f"{what}: its payload is not an ELF file")
    return found


def types(kernel: bytes, what: str) -> bytes:
    """The BTF section of a kernel's ELF file."""
    try:
        section = ELFFile(io.BytesIO(kernel)).get_section_by_name(".BTF")
    except ELFError as error:
        raise KernelError(f"{what}: damaged ELF file: {error}") from error
    if section is None:
        raise KernelError(f"{what}: it has no section .BTF")
    return bytes(section.data())


def module_name(path: str) -> str:
    """kernel/drivers/virtio/virtio-rng.ko.xz -> virtio_rng"""
    return PurePosixPath(path).name.partition(".")[0].replace("-", "_")


def load_order(dependencies: str, builtin: str, wanted: Iterable[str]) -> list[str]:
    """The files to load for the modules `wanted`, each once and behind all that it needs.

    `dependencies` and `builtin` are the text of modules.dep(5) and modules.builtin. Modules that
    are part of the kernel need no file.
    """
    needs = {}
    for line in dependencies.splitlines():
        path, _, others = line.partition(":")
        needs[module_name(path)] = (path, [module_name(other) for other in others.split()])
    within = {module_name(line) for line in builtin.splitlines()}
    order: list[str] = []

    def add(name: str) -> None:
        if name in within:
            return
        if name not in needs:
            raise KernelError(f"the kernel has no module {name}")
        path, others = needs[name]
        if path in order:
            return
        for other in others:
            add(other)
        order.append(path)

    for name in wanted:
        add(module_name(name))
    return order
