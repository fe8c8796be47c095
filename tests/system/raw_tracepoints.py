"""Who is attached to a raw tracepoint, through libbpf."""

from __future__ import annotations

import ctypes
import os
from ctypes import c_uint32, c_uint64

from collector.linux.libbpf import LIBRARY

_RAW_TRACEPOINT = 1  # BPF_LINK_TYPE_RAW_TRACEPOINT of enum bpf_link_type, <linux/bpf.h>


class _RawTracepointInfo(ctypes.Structure):
    """The head of struct bpf_link_info with its member `raw_tracepoint`."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("prog_id", c_uint32),
        ("pad", c_uint32),
        ("tp_name", c_uint64),
        ("tp_name_len", c_uint32),
        ("pad2", c_uint32),
    )


def count_raw_tracepoint_links(tracepoint: str) -> int:
    """How many programs, anyone's, are attached to a raw tracepoint (BPF_LINK_GET_NEXT_ID)."""
    libbpf = ctypes.CDLL(LIBRARY)
    name = ctypes.create_string_buffer(128)
    number = c_uint32(0)
    count = 0
    while libbpf.bpf_link_get_next_id(number, ctypes.byref(number)) == 0:
        descriptor = libbpf.bpf_link_get_fd_by_id(number)
        if descriptor < 0:
            continue  # it is gone meanwhile
        info = _RawTracepointInfo(tp_name=ctypes.addressof(name), tp_name_len=len(name))
        length = c_uint32(ctypes.sizeof(info))
        try:
            failed = libbpf.bpf_obj_get_info_by_fd(
                descriptor, ctypes.byref(info), ctypes.byref(length)
            )
        finally:
            os.close(descriptor)
        is_raw = not failed and info.type == _RAW_TRACEPOINT
        count += is_raw and name.value.decode() == tracepoint
    return count
