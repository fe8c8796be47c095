"""What deaths are compared by: builds and circumstances, as words that can be counted. Pure."""

from __future__ import annotations

from collector.model import Record

_LONGEST = 120  # characters of a value


def build_of(record: Record) -> str | None:
    """The build-id of the executable; None: it has none, or no frame of it is known."""
    for frame in record.frames or ():
        if frame.module is not None and frame.module == record.exe and frame.build_id:
            return frame.build_id[:_LONGEST]
    return None


def version_of(record: Record) -> str | None:
    """The version of the package that the executable is of; None: not known."""
    return None if record.package is None else record.package.version[:_LONGEST]


def facets_of(record: Record) -> dict[str, str]:
    """name -> value; what is not known is left out."""
    found = {
        "build": build_of(record),
        "unit": record.unit,
        "uid": None if record.uid is None else str(record.uid),
        "container": None if record.container is None else str(record.container).lower(),
        "hour": f"{record.time.hour:02} UTC",
        "version": version_of(record),
        "kernel": None if record.host is None else record.host.kernel,
        "cpu": None if record.host is None else record.host.cpu,
        "host": None if record.host is None else record.host.name,
        "threads": None if record.threads is None else _size(record.threads),
    }
    # attributes that the policy takes from the environment: the process chose their values
    found |= {f"attribute {name}"[:_LONGEST]: value for name, value in record.attributes.items()}
    # SQLite takes a NUL for the end of a text
    return {
        name: value[:_LONGEST].replace("\0", "\N{REPLACEMENT CHARACTER}")
        for name, value in found.items()
        if value
    }


def _size(count: int) -> str:
    """An order of magnitude: exact numbers would all be different ones."""
    return "1" if count <= 1 else f"up to {1 << (count - 1).bit_length()}"
