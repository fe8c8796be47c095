"""What tests/kernels takes out of a kernel package, and reads from libbpf's log."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable

import pytest
import zstandard

from tests.kernels.relocate import Relocation, parse
from tests.kernels.unpack import KernelError, load_order, module_name, types, vmlinux

ELF = b"\x7fELF" + bytes(range(256)) * 64


def _bzimage(payload: bytes, sectors: int = 3) -> bytes:
    """A bzImage whose protected-mode code is 100 bytes, the payload and 50 bytes."""
    head = bytearray((1 + (sectors or 4)) * 512)
    head[0x1F1] = sectors
    head[0x202:0x208] = b"HdrS" + (0x20F).to_bytes(2, "little")
    head[0x248:0x250] = (100).to_bytes(4, "little") + len(payload).to_bytes(4, "little")
    # The magic numbers of gzip and xz stand in the code as well, as in a real kernel's unpacker
    return bytes(head) + b"\x1f\x8b\x08\xfd7zXZ\0".ljust(100, b"\x90") + payload + b"\x90" * 50


@pytest.mark.parametrize(
    "compress",
    [
        lzma.compress,
        lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
        gzip.compress,
        bz2.compress,
        lambda data: zstandard.ZstdCompressor(write_content_size=False).compress(data),
    ],
    ids=["xz", "lzma", "gzip", "bzip2", "zstd"],
)
@pytest.mark.parametrize("sectors", [3, 0])
def test_the_kernel_is_unpacked(compress: Callable[[bytes], bytes], sectors: int) -> None:
    size = len(ELF).to_bytes(4, "little")  # the kernel's build appends it
    assert vmlinux(_bzimage(compress(ELF) + size, sectors), "vmlinuz") == ELF


def test_a_payload_that_is_not_compressed_is_taken_as_it_is() -> None:
    assert vmlinux(_bzimage(ELF), "vmlinuz") == ELF


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (b"", "not a bzImage"),
        (_bzimage(ELF).replace(b"HdrS", b"HdrX"), "not a bzImage"),
        (_bzimage(ELF)[:-100], "is not within its size"),
        (_bzimage(b"\x02\x21\x4c\x18" + ELF), "unknown compression .*02214c18"),  # LZ4
        (_bzimage(lzma.compress(ELF)[:24] + bytes(100)), "the xz data is damaged"),
        (_bzimage(gzip.compress(b"no ELF file")), "its payload is not an ELF file"),
    ],
    ids=["empty", "magic", "short", "lz4", "damaged", "no-elf"],
)
def test_what_is_no_kernel_is_refused_in_one_line(image: bytes, problem: str) -> None:
    with pytest.raises(KernelError, match=f"^vmlinuz: .*{problem}") as refused:
        vmlinux(image, "vmlinuz")
    assert "\n" not in str(refused.value)


def test_types_of_a_file_without_them_are_refused() -> None:
    with pytest.raises(KernelError, match=r"^vmlinuz: "):
        types(ELF, "vmlinuz")


DEPENDENCIES = """\
kernel/net/9p/9pnet.ko.xz:
kernel/net/9p/9pnet_virtio.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/drivers/virtio/virtio_ring.ko.xz kernel/drivers/virtio/virtio.ko.xz
kernel/fs/9p/9p.ko.xz: kernel/fs/netfs/netfs.ko.xz kernel/net/9p/9pnet.ko.xz
kernel/fs/netfs/netfs.ko.xz:
kernel/drivers/virtio/virtio.ko.xz:
kernel/drivers/virtio/virtio_ring.ko.xz: kernel/drivers/virtio/virtio.ko.xz
kernel/drivers/char/hw_random/virtio-rng.ko.xz: kernel/drivers/virtio/virtio_ring.ko.xz kernel/drivers/virtio/virtio.ko.xz
"""  # noqa: E501


def test_modules_are_loaded_behind_what_they_need_and_once() -> None:
    wanted = ["9pnet_virtio", "9p", "virtio_rng", "overlay"]
    order = load_order(DEPENDENCIES, "kernel/fs/overlayfs/overlay.ko\n", wanted)
    assert [module_name(path) for path in order] == [
        *("9pnet", "virtio", "virtio_ring", "9pnet_virtio"),
        *("netfs", "9p", "virtio_rng"),
    ]
    assert order[-1] == "kernel/drivers/char/hw_random/virtio-rng.ko.xz"


def test_a_module_that_the_kernel_lacks_is_named() -> None:
    with pytest.raises(KernelError, match="no module overlay"):
        load_order(DEPENDENCIES, "", ["overlay"])


LOG = """\
libbpf: sec 'raw_tp/exit': relo #0: insn #6 against 'counters'
libbpf: prog 'reads': relo #0: <byte_off> [5] struct task_struct.mm (0:0 @ offset 0)
libbpf: prog 'reads': relo #0: matching candidate #0 <byte_off> [112] struct task_struct.mm (0:58 @ offset 2304)
libbpf: prog 'reads': relo #0: patched insn #5 (ALU/ALU64) imm 0 -> 2304
libbpf: prog 'reads': relo #1: <field_exists> [7] struct file___new.user_path (0:0 @ offset 0)
libbpf: prog 'reads': relo #1: no matching targets found
libbpf: prog 'reads': relo #1: patched insn #9 (ALU/ALU64) imm 1 -> 0
libbpf: prog 'other': relo #1: <enumval_value> [9] enum hint::HINT_NEW = 4
libbpf: prog 'other': relo #1: no matching targets found
libbpf: prog 'other': relo #1: substituting insn #12 w/ invalid insn
"""  # noqa: E501


def test_relocations_are_read_from_the_log_of_libbpf() -> None:
    relocations = list(parse(LOG))
    assert relocations == [
        Relocation("reads", "byte_off", "task_struct.mm", True),
        Relocation("reads", "field_exists", "file___new.user_path", False),
        Relocation("other", "enumval_value", "hint::HINT_NEW", False),
    ]
    assert [one.may_be_missing for one in relocations] == [False, True, False]
