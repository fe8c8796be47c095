"""The published schema of a record is that of the code, and is one that refuses what is wrong."""

from __future__ import annotations

import functools
import json

import msgspec
import pytest
from jsonschema import Draft202012Validator

from collector.diagnosis import Access, Category, Confidence, Diagnosis, Evidence, Mapping
from collector.store.encoding import encode
from collector.store.record_schema import schema_text
from tests.record_schema import PUBLISHED, complaints
from tests.unit.store_samples import SEGFAULT

STACK = Mapping(start=0x7FFE00000000, end=0x7FFE00021000, permissions="rw-", name="[stack]")
DIAGNOSED = msgspec.structs.replace(
    SEGFAULT,
    diagnosis=Diagnosis(
        category=Category.NEAR_NULL,
        confidence=Confidence.LIKELY,
        evidence=Evidence(address=0x18, offset=0x18, access=Access.READ, stack=STACK),
    ),
)


def test_the_published_schema_is_current() -> None:
    # (python -m collector.store.record_schema > docs/record.schema.json)
    assert PUBLISHED.read_text() == schema_text()


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(json.loads(schema_text()))


def test_records_with_and_without_a_diagnosis_fit() -> None:
    for record in (SEGFAULT, DIAGNOSED):
        assert complaints(json.loads(encode(record))) == []


@pytest.mark.parametrize(
    ("part", "name", "value", "place"),
    [
        ((), "pid", "812", "$.pid"),
        ((), "colour", "red", "$"),
        (("diagnosis",), "category", "bad-luck", "$.diagnosis"),
        (("diagnosis", "evidence"), "smell", 1, "$.diagnosis"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(
    part: tuple[str, ...], name: str, value: object, place: str
) -> None:
    # GIVEN a record with a field that is of another type, or that there is not
    record = json.loads(encode(DIAGNOSED))
    functools.reduce(dict.__getitem__, part, record)[name] = value
    # THEN that is what is complained of
    assert [line.split(":")[0] for line in complaints(record)] == [place]
