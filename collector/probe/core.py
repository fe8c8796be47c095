"""Load the prebuilt CO-RE object through libbpf, and pin what it holds. Needs no compiler."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from collector.errors import ProbeError
from collector.probe import libbpf, pins


def load(image: bytes, name: str, directory: Path) -> None:
    """Load an object file's bytes, attach its programs, pin them into `directory`.

    ProbeError says what the kernel did not like.
    """
    try:
        _load(image, name, directory, ())
    except ProbeError:
        # what is optional may be what the kernel does not like; if not, it says so again
        _load(image, name, directory, pins.OPTIONAL)


def _load(image: bytes, name: str, directory: Path, without: Collection[str]) -> None:
    links: dict[str, int] = {}
    with libbpf.Object(image, name, without) as loaded:
        programs = dict(loaded.programs())
        try:
            for program, tracepoint in pins.OPTIONAL.items():
                if program in programs:
                    links[program] = libbpf.attach_raw_tracepoint(tracepoint, programs[program])
            for tracepoint in pins.TRACEPOINTS:
                links[tracepoint] = libbpf.attach_raw_tracepoint(tracepoint, programs[tracepoint])
            pins.publish(
                pins.Programs(
                    links=links,
                    maps={name: loaded.map(name) for name in pins.MAPS},
                    iterators={name: programs[name] for name in pins.ITERATORS},
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
