"""Hold records against the published schema, more strictly: nothing that it does not name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

PUBLISHED = Path(__file__).resolve().parents[1] / "docs" / "record.schema.json"


def closed(schema: Any) -> Any:
    """The schema without room for fields that it does not name."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {name: closed(part) for name, part in schema.items()}
    return {**parts, "additionalProperties": False} if "properties" in parts else parts


def complaints(record: dict[str, Any]) -> list[str]:
    """What the schema says against it, with the place; none if it fits."""
    validator = Draft202012Validator(closed(json.loads(PUBLISHED.read_text())))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(record)]
