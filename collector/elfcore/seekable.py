"""The seekable format of zstd: a table of all frames behind them, for random access.

Source: contrib/seekable_format/zstd_seekable_compression_format.md of zstd. The table is itself
a skippable frame, so that `zstd -d` reads such a file like any other:

    magic 0x184D2A5E, size of the rest | per frame: compressed size, decompressed size
    [, checksum] | number of frames, descriptor byte, magic 0x8F92EAB1

Here: the table both ways, and `FrameReader`, which reads bytes of the decompressed file. What
the file holds is not known here. zstandard is imported when the first frame is.
"""

from __future__ import annotations

import bisect
import itertools
import os
import struct
from array import array
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from collector.elfcore.zeros import CHUNK, ZEROS
from collector.errors import CoreFormatError
from collector.ranges import Range

if TYPE_CHECKING:
    from collector.elfcore.frames import FrameCache

FRAME = CHUNK  # bytes of a frame as ZstdWriter makes them
_ZERO_MOST = 512  # bytes of one that is all zero, compressed: 128 at level 1
MAX_FRAME = 64 << 20  # bytes of a frame that is read
MAX_FRAMES = 1 << 24
SKIPPABLE = struct.Struct("<II")  # magic, size of the rest
SKIPPABLE_MAGIC = 0x184D2A5E
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_FOOTER = struct.Struct("<IBI")
_FOOTER_MAGIC = 0x8F92EAB1
_CHECKSUMS = 0x80  # descriptor: each line has a checksum
_RESERVED = 0x7C
_CACHED = 4 * FRAME  # bytes that a reader keeps which has no cache of others
_IN_ORDER = 3  # frames one after the other make a reader one that goes on so
_AHEAD = 2  # frames that are then loaded before they are asked for


def skippable(size: int) -> bytes:
    """Give a frame of `size` bytes, at least 8, that decompresses to nothing."""
    return SKIPPABLE.pack(SKIPPABLE_MAGIC, size - SKIPPABLE.size).ljust(size, b"\0")


def build_table(sizes: array[int]) -> bytes:
    """Give the table's frame. `sizes` are pairs of u32: compressed, decompressed."""
    body = sizes.tobytes() + _FOOTER.pack(len(sizes) // 2, 0, _FOOTER_MAGIC)
    return SKIPPABLE.pack(SKIPPABLE_MAGIC, len(body)) + body


class FrameReader:
    """Random access to a file in the seekable format, also by several threads. Does not close `fd`.

    `size` is that of the decompressed file. cache: that of several readers; `close` before `fd` is
    closed. CoreFormatError if the file has no table, or one that does not fit it.
    """

    def __init__(self, fd: int, cache: FrameCache | None = None) -> None:
        self._fd = fd
        compressed, plain = _read_table(fd)
        self.lengths = plain
        self._sizes = compressed
        self._starts = array("Q", itertools.accumulate(compressed, initial=0))
        self._offsets = array("Q", itertools.accumulate(plain, initial=0))
        self.size = self._offsets[-1]
        if cache is None:
            from collector.elfcore.frames import FrameCache  # noqa: PLC0415 - readers only

            cache = FrameCache(_CACHED)
        self._cache = cache
        self._zeros = b""  # FRAME zeros, compressed
        self._last, self._run = -1, 0  # the frame read last, and how many in order led to it
        for number, (size, length) in enumerate(zip(compressed, plain, strict=True)):
            if size and not length:
                self._check_empty(number)

    def _check_empty(self, number: int) -> None:
        """A frame that the table says is empty is passed over: it must not be one with data."""
        packed = self._packed(number)
        if int.from_bytes(packed[:4], "little") & ~0xF != SKIPPABLE_MAGIC & ~0xF:
            self._unpack(number, packed)

    def read(self, offset: int, size: int) -> bytes:
        """Give bytes of the decompressed file; fewer at its end."""
        end = min(offset + size, self.size)
        parts = []
        # The last frame that begins at or before offset; empty ones before it are passed over.
        number = bisect.bisect_right(self._offsets, offset) - 1
        while offset < end:
            begin = offset - self._offsets[number]
            take = min(self.lengths[number] - begin, end - offset)
            if take > 0:
                parts.append(self._cached(number)[begin : begin + take])
                offset += take
            number += 1
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def frames(self) -> Iterator[tuple[int, bytes | None]]:
        """All frames in order: length, and bytes or None where a frame is known to be zero."""
        for number, length in enumerate(self.lengths):
            if length:
                data = self._load(number)
                yield length, None if data is ZEROS else data

    def data_at(self, offset: int) -> Range | None:
        """The next bytes from `offset` on that are not known to be zero; None: there are none.

        Only small frames are looked at: a large one is not all zero.
        """
        number = max(0, bisect.bisect_right(self._offsets, offset) - 1)
        while number < len(self.lengths) and self._is_zero(number):
            number += 1
        begin = end = number
        while end < len(self.lengths) and not self._is_zero(end):
            end += 1
        start = max(offset, self._offsets[begin])
        return (start, self._offsets[end]) if start < self.size else None

    def _is_zero(self, number: int) -> bool:
        length = self.lengths[number]
        if not length:
            return True
        small = self._sizes[number] <= _ZERO_MOST and length == FRAME
        return small and self._cached(number) is ZEROS

    def close(self) -> None:
        """Nothing is read any more, and nothing kept."""
        self._cache.forget(self)

    def _cached(self, number: int) -> bytes:
        if number != self._last:  # threads may miscount between them: it is a guess
            self._run = self._run + 1 if number == self._last + 1 else 0
            self._last = number
            if self._run >= _IN_ORDER:
                for ahead in range(number + 1, min(number + 1 + _AHEAD, len(self.lengths))):
                    self._cache.load_ahead(self, ahead, partial(self._load, ahead))
        return self._cache.get(self, number, partial(self._load, number))

    def _load(self, number: int) -> bytes:
        """The bytes of a frame; ZEROS itself for each whole one that is compressed as others are
        that were zero."""
        packed = self._packed(number)
        if packed == self._zeros and self.lengths[number] == FRAME:
            return ZEROS
        data = self._unpack(number, packed)
        if len(data) == FRAME and data == ZEROS:
            self._zeros = packed
            return ZEROS
        return data

    def _packed(self, number: int) -> bytes:
        size = self._sizes[number]
        packed = os.pread(self._fd, size, self._starts[number])
        if len(packed) != size:
            raise CoreFormatError(f"compressed core: frame {number} is cut off")
        return packed

    def _unpack(self, number: int, packed: bytes) -> bytes:
        import zstandard  # noqa: PLC0415 - heavy, and plain cores do without it

        length = self.lengths[number]
        try:
            # Checked first: decompress() would allocate whatever the frame claims.
            claimed = zstandard.frame_content_size(packed)
            if claimed not in (-1, length):
                raise CoreFormatError(
                    f"compressed core: frame {number} claims {claimed} bytes, the table {length}"
                )
            # A frame that lost its checksum's flag would leave the checksum over.
            data = zstandard.ZstdDecompressor().decompress(
                packed, max_output_size=length, allow_extra_data=False
            )
        except (zstandard.ZstdError, MemoryError) as error:
            raise CoreFormatError(f"compressed core: frame {number} is damaged: {error}") from None
        if len(data) != length:
            raise CoreFormatError(
                f"compressed core: frame {number} has {len(data)} bytes, the table says {length}"
            )
        return data


def plain_size(fd: int) -> int:
    """The size of the decompressed file, from its table alone. CoreFormatError as FrameReader."""
    return sum(_read_table(fd)[1])


def _read_table(fd: int) -> tuple[array[int], array[int]]:
    """Compressed and decompressed sizes of all frames, checked against each other and the file."""
    file_size = os.fstat(fd).st_size
    tail = os.pread(fd, _FOOTER.size, max(0, file_size - _FOOTER.size))
    count, descriptor, magic = _FOOTER.unpack(tail) if len(tail) == _FOOTER.size else (0, 0, 0)
    if magic != _FOOTER_MAGIC:
        raise CoreFormatError(
            "compressed core without a seek table (or cut off): decompress it first, with zstd -d"
        )
    width = 3 if descriptor & _CHECKSUMS else 2
    body = count * width * 4 + _FOOTER.size
    start = file_size - body - SKIPPABLE.size
    if count > MAX_FRAMES or descriptor & _RESERVED or start < 0:
        raise CoreFormatError(f"compressed core: its seek table of {count} frames is impossible")
    table = os.pread(fd, SKIPPABLE.size + body, start)
    if len(table) != SKIPPABLE.size + body or SKIPPABLE.unpack_from(table) != (
        SKIPPABLE_MAGIC,
        body,
    ):
        raise CoreFormatError("compressed core: its seek table is damaged")
    words = array("I")
    words.frombytes(table[SKIPPABLE.size : -_FOOTER.size])
    compressed, plain = words[::width], words[1::width]
    if sum(compressed) != start or max(plain, default=0) > MAX_FRAME:
        raise CoreFormatError("compressed core: its seek table does not fit the file")
    return compressed, plain
