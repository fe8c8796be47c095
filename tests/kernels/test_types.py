"""The built BPF objects fit the types of the kernels 6.1 and 6.12, without booting these.

What a kernel may lack is read only through a type with a flavour (`struct x___since_6_8`), behind
bpf_core_field_exists(). Everything else must be there in every kernel.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from collector.probe import build, files
from tests.kernels.images import KERNELS, Image, fetch
from tests.kernels.relocate import Outcome, relocate

OBJECTS = {
    "coreward": files.object_file(),
    "live": files.live_object_file(),
    "trace": files.trace_object_file(),
}

# They reach kernel objects through helpers only: the running kernel's verifier takes any offset.
# The others also load from them plainly. Only the other kernel itself can judge those, in a guest.
THROUGH_HELPERS = {"signal_generate", "sched_process_exit", "mark_victim"}

# task_struct.mm_cid is there since 6.3: 6.12 has it, 6.1 does not.
SOURCE = """
typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;
typedef int __s32;
typedef long long __s64;
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

struct TASK { int mm_cid; } __attribute__((preserve_access_index));

char _license[] SEC("license") = "GPL";

SEC("raw_tp/sched_process_exit") int reads(void *ctx)
{
    struct TASK *t = (void *)bpf_get_current_task();
    int value = 0;

    if (GUARD)
        bpf_core_read(&value, sizeof(value), &t->mm_cid);
    return value;
}
"""


@pytest.fixture(scope="module", params=KERNELS)
def image(request: pytest.FixtureRequest) -> Image:
    return fetch(request.param)


@pytest.mark.parametrize("name", OBJECTS)
def test_every_relocation_finds_its_type_or_is_allowed_to_miss(name: str, image: Image) -> None:
    outcome = relocate(OBJECTS[name], image.btf)
    assert outcome.is_relocated, outcome.log
    assert len(outcome.relocations) > 100
    assert outcome.unguarded() == []


def test_programs_that_read_through_helpers_load_with_the_offsets_of(image: Image) -> None:
    outcome = relocate(OBJECTS["coreward"], image.btf, THROUGH_HELPERS)
    assert outcome.loaded, outcome.log


@pytest.mark.parametrize("name", OBJECTS)
def test_no_program_is_seen_to_use_what_is_missing(name: str, image: Image) -> None:
    """As far as the verifier gets before a plain load stops it."""
    programs = {one.program for one in relocate(OBJECTS[name], image.btf).relocations}
    for program in programs:
        outcome = relocate(OBJECTS[name], image.btf, {program})
        assert outcome.is_relocated, outcome.log
        assert not outcome.uses_what_is_missing, outcome.log


def _relocated(folder: Path, image: Image, task: str, guard: str) -> Outcome:
    source, target = folder / "reads.bpf.c", folder / "reads.bpf.o"
    source.write_text(f"#define TASK {task}\n#define GUARD {guard}\n{SOURCE}")
    build.compile_object(source, folder, target)
    return relocate(target, image.btf)


def test_a_field_that_a_kernel_lacks_is_noticed(image: Image, tmp_path: Path) -> None:
    outcome = _relocated(tmp_path, image, "task_struct", "1")
    assert outcome.is_relocated, outcome.log
    missing = [one.target for one in outcome.unguarded()]
    assert missing == {"6.1": ["task_struct.mm_cid"], "6.12": []}[image.name]


def test_a_field_with_flavour_and_guard_may_be_missing(image: Image, tmp_path: Path) -> None:
    guard = "bpf_core_field_exists(t->mm_cid)"
    outcome = _relocated(tmp_path, image, "task_struct___since_6_3", guard)
    missing = {one.kind for one in outcome.relocations if not one.found}
    assert missing == {"6.1": {"byte_off", "field_exists"}, "6.12": set()}[image.name]
    assert outcome.unguarded() == []
    assert outcome.loaded, outcome.log


def test_a_flavour_without_guard_does_not_load(image: Image, tmp_path: Path) -> None:
    outcome = _relocated(tmp_path, image, "task_struct___since_6_3", "1")
    assert outcome.unguarded() == []
    assert outcome.loaded == (image.name == "6.12")
    assert outcome.uses_what_is_missing == (image.name == "6.1")
