"""The example that streams cores over TLS, and the collector at the other end."""

from __future__ import annotations

import errno
import socket
import sys
from pathlib import Path

import pytest

from collector.elfcore.reader import CoreFile
from tests.unit.collecting import collecting, make_certificates
from tests.unit.live_event import SECRET, living
from tests.unit.test_dumpers_process import EXAMPLES, Outside, dumped_by, outside, registered

__all__ = ["outside"]  # (a fixture)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def streaming(outside: Outside, address: str, ca: str, *more: str) -> list[str]:
    return [
        *(sys.executable, str(EXAMPLES / "tls_stream.py"), str(outside.path), address),
        *("--ca", ca, *more),
    ]


def test_a_core_is_stored_elsewhere_byte_by_byte(
    outside: Outside, tmp_path: Path, certificates: Path
) -> None:
    cores = tmp_path / "cores"
    cores.mkdir()
    # GIVEN a collector that asks for a certificate, and a dumper that has one
    with collecting(cores, certificates, "--clients", "ours-ca.pem") as port:
        mine = ("--cert", "ours.pem", "--key", "ours.key")
        command = streaming(outside, f"localhost:{port}", "ours-ca.pem", *mine)
        with registered(command, certificates), living() as (event, address):
            # WHEN it has a process
            dumped = dumped_by(outside.hub, event)
            # THEN the core is there when it says so: whole, and with its holes
            (core,) = cores.iterdir()
            size = core.stat().st_size
            assert (dumped.status, dumped.note) == (0, f"{size} bytes to localhost:{port}")
            assert core.name.startswith(f"{event.get('pid')}-")
            assert core.stat().st_blocks * 512 < size
            with CoreFile(core) as read:
                assert read.read(address, len(SECRET)) == SECRET
                assert len(read.threads) == 2


@pytest.mark.parametrize(
    ("ca", "host", "why"),
    [
        ("other-ca.pem", "localhost", "certificate verify failed"),  # of another authority
        ("ours-ca.pem", "127.0.0.1", "certificate verify failed"),  # for another name
    ],
)
def test_no_byte_goes_to_somebody_else(
    outside: Outside, tmp_path: Path, certificates: Path, ca: str, host: str, why: str
) -> None:
    with (
        collecting(tmp_path, certificates) as port,
        registered(streaming(outside, f"{host}:{port}", ca), certificates),
        living() as (event, _),
    ):
        dumped = dumped_by(outside.hub, event)
    assert dumped.status == errno.EPROTO
    assert why in dumped.note
    assert not list(tmp_path.glob("*.core"))


def test_a_dumper_without_a_certificate_is_not_heard(
    outside: Outside, tmp_path: Path, certificates: Path
) -> None:
    with (
        collecting(tmp_path, certificates, "--clients", "ours-ca.pem") as port,
        registered(streaming(outside, f"localhost:{port}", "ours-ca.pem"), certificates),
        living() as (event, _),
    ):
        assert dumped_by(outside.hub, event).status in (errno.EPROTO, errno.EPIPE, errno.ECONNRESET)
    assert not list(tmp_path.glob("*.core"))


def test_what_the_collector_refuses_is_said(
    outside: Outside, tmp_path: Path, certificates: Path
) -> None:
    # GIVEN a collector that takes small cores only
    with (
        collecting(tmp_path, certificates, "--most", "1000") as port,
        registered(streaming(outside, f"localhost:{port}", "ours-ca.pem"), certificates),
        living() as (event, _),
    ):
        # THEN the next dumper has its turn
        assert dumped_by(outside.hub, event).status not in (0, None)
    assert not list(tmp_path.glob("*.core"))


def test_who_does_not_answer_is_not_waited_for(outside: Outside, certificates: Path) -> None:
    # GIVEN somebody who accepts, and says nothing
    with socket.create_server(("localhost", 0)) as mute:
        address = f"localhost:{mute.getsockname()[1]}"
        command = streaming(outside, address, "ours-ca.pem", "--timeout", "0.2")
        with registered(command, certificates), living() as (event, _):
            assert dumped_by(outside.hub, event).status == errno.ETIMEDOUT


def test_a_name_that_nobody_knows_is_an_error_of_the_kernel(
    outside: Outside, certificates: Path
) -> None:
    # (socket.gaierror has numbers of its own, which are no status)
    command = streaming(outside, "nowhere.invalid:1", "ours-ca.pem")
    with registered(command, certificates), living() as (event, _):
        assert dumped_by(outside.hub, event).status == errno.EIO
