"""The `sinks` section of a policy file: what it may say, and what is said of a wrong one."""

from __future__ import annotations

import pytest

from collector.errors import PolicyError
from collector.policy.load import loads
from collector.policy.types import OtlpSettings, SinkSettings

SUCH = "expected an address such as http://127.0.0.1:4318/v1/logs"
AT = "http://127.0.0.1:4318/v1/logs"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", SinkSettings()),
        ("sinks: {journal: true}", SinkSettings(journal=True)),
        ("sinks: {otlp: off}", SinkSettings()),
        (f'sinks: {{otlp: {{endpoint: "{AT}"}}}}', SinkSettings(otlp=OtlpSettings(endpoint=AT))),
        (
            "sinks:\n  otlp:\n    endpoint: https://[::1]/logs\n    timeout: 2s\n"
            "    headers: {Authorization: Bearer x, x-tenant: a}",
            SinkSettings(
                otlp=OtlpSettings(
                    endpoint="https://[::1]/logs",
                    headers=(("Authorization", "Bearer x"), ("x-tenant", "a")),
                    timeout=2.0,
                )
            ),
        ),
    ],
)
def test_what_is_told(text: str, expected: SinkSettings) -> None:
    assert loads(text, "f").sinks == expected


@pytest.mark.parametrize(
    ("otlp", "message"),
    [
        ("{}", f"sinks.otlp: has no `endpoint`; {SUCH}"),
        ("{endpoint: x}", f'sinks.otlp.endpoint: "x": {SUCH}'),
        ('{endpoint: "ftp://h/x"}', f'sinks.otlp.endpoint: "ftp://h/x": {SUCH}'),
        ('{endpoint: "http://h:99999/x"}', f'sinks.otlp.endpoint: "http://h:99999/x": {SUCH}'),
        ('{endpoint: "http://h/a b"}', f'sinks.otlp.endpoint: "http://h/a b": {SUCH}'),
        (
            '{endpoint: "http://h:4318"}',
            'sinks.otlp.endpoint: "http://h:4318" has no path; a collector takes logs at /v1/logs',
        ),
        (
            '{endpoint: "http://me:secret@h/x"}',
            f"sinks.otlp.endpoint: no user or password in the address; {SUCH}, and `headers`",
        ),
        (
            f'{{endpoint: "{AT}", timeout: 5m}}',
            "sinks.otlp.timeout: expected a duration from 100ms to 1m, such as 10s",
        ),
        (
            f'{{endpoint: "{AT}", headers: [a]}}',
            "sinks.otlp.headers: expected headers by name, not a list",
        ),
        (
            f'{{endpoint: "{AT}", headers: {{Host: x}}}}',
            'sinks.otlp.headers: "Host" is no header that can be set',
        ),
        (
            f'{{endpoint: "{AT}", headers: {{"a b": x}}}}',
            'sinks.otlp.headers: "a b" is no header that can be set',
        ),
        (
            f'{{endpoint: "{AT}", headers: {{a: "x\\ny: z"}}}}',
            "sinks.otlp.headers.a: expected printable ASCII text",
        ),
        (
            f'{{endpoint: "{AT}", headers: {{a: x, A: y}}}}',
            'sinks.otlp.headers: "A" is given twice',
        ),
    ],
)
def test_what_is_wrong(otlp: str, message: str) -> None:
    with pytest.raises(PolicyError) as caught:
        loads(f"sinks: {{otlp: {otlp}}}", "f")
    assert str(caught.value) == f"f:1: {message}"
