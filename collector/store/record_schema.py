"""The JSON Schema of a record, as docs/record.schema.json publishes it.

    python -m collector.store.record_schema > docs/record.schema.json

It follows from the types of `model`, so that it cannot say anything else than what is stored.
"""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from collector.model import Record

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, Any]:
    """Of what `record.json` holds. Fields that it does not name may be added by later versions."""
    return {"$schema": _DIALECT, "title": "Coreward record", **msgspec.json.schema(Record)}


def schema_text() -> str:
    """The file as it is published."""
    return msgspec.json.format(msgspec.json.encode(schema()), indent=2).decode() + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
