"""docs/health.schema.json, from the types of its documents: `python -m tests.health_schema`."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from collector.health.types import Events, Last, Loops, Problem, State

SCHEMA = Path(__file__).resolve().parents[1] / "docs" / "health.schema.json"
DOCUMENTS = {
    "/v1/state": State,
    "/v1/loops": Loops,
    "/v1/last": Last,
    "/v1/events": Events,
    "error": Problem,
}


def made() -> str:
    """The schema of today: each document by the path at which it is answered."""
    schemas, parts = msgspec.json.schema_components(
        DOCUMENTS.values(), ref_template="#/$defs/{name}"
    )
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Coreward's health interface",
        "documents": dict(zip(DOCUMENTS, schemas, strict=True)),
        "$defs": parts,
    }
    return json.dumps(document, indent=2) + "\n"


if __name__ == "__main__":
    SCHEMA.write_text(made())
