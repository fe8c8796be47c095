"""Load the prebuilt CO-RE object through libbpf, and pin what it holds. Needs no compiler."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from collector.errors import ProbeError
from collector.linux import libbpf
from collector.probe import pins

log = logging.getLogger(__name__)


def load(image: bytes, name: str, directory: Path) -> None:
    """Load an object file's bytes, attach its programs, pin them into `directory`.

    ProbeError says what the kernel did not like.
    """
    for optional in _choices():
        try:
            _load(image, name, directory, optional)
        except ProbeError as error:
            if optional is None:
                raise
            log.info("BPF: without the program %s: %s", optional, error)
        else:
            return


def _choices() -> Iterator[str | None]:
    """The one optional program to go with the others, best first; None: without any."""
    with libbpf.Types() as types:
        lists_mappings = types.has_function("bpf_iter_task_vma_new")
        tells_early = pins.tells_exit_early(types)
    if tells_early:
        if lists_mappings:
            yield pins.MAPPED_AT_EXIT
    else:
        yield pins.LEAVING_MAPPED if lists_mappings else pins.LEAVING_WALKED
        yield pins.LEAVING
    yield None


def _load(image: bytes, name: str, directory: Path, optional: str | None) -> None:
    links: dict[str, int] = {}
    without = [program for program in pins.OPTIONAL if program != optional]
    with libbpf.Object(image, name, without) as loaded:
        programs = dict(loaded.programs())
        try:
            if optional == pins.MAPPED_AT_EXIT:
                links[optional] = libbpf.attach_raw_tracepoint(
                    "sched_process_exit", programs[optional]
                )
            elif optional is not None:
                links[optional] = libbpf.attach_function(programs[optional])
            for tracepoint in pins.TRACEPOINTS:
                links[tracepoint] = libbpf.attach_raw_tracepoint(tracepoint, programs[tracepoint])
            pins.publish(
                pins.Programs(
                    links=links,
                    maps={name: loaded.map(name) for name in (*pins.MAPS, pins.WALK_ORDER)},
                    iterators={name: programs[name] for name in (*pins.ITERATORS, pins.WALK)},
                ),
                directory,
            )
        except OSError as error:
            raise ProbeError(f"{name}: {error.strerror}") from error
        except KeyError as error:
            raise ProbeError(f"{name} has no program {error}: build it again") from error
        finally:
            for descriptor in links.values():
                os.close(descriptor)
