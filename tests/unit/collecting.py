"""The collector of the examples, with certificates made for a test."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

KEY = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
RECEIVER = Path(__file__).parents[2] / "examples" / "dumpers" / "tls_receiver.py"


def make_certificates(folder: Path) -> Path:
    """Two authorities in a folder, and of each a certificate for `localhost`: the folder."""
    for authority in ("ours", "other"):
        commands = (
            f"req -x509 {KEY} -days 2 -subj /CN={authority} "
            f"-keyout {authority}-ca.key -out {authority}-ca.pem",
            f"req {KEY} -subj /CN=localhost -keyout {authority}.key -out {authority}.csr",
            f"x509 -req -in {authority}.csr -CA {authority}-ca.pem -CAkey {authority}-ca.key "
            f"-CAcreateserial -days 2 -extfile names -out {authority}.pem",
        )
        (folder / "names").write_text("subjectAltName=DNS:localhost\n")
        for command in commands:
            subprocess.run(
                ["openssl", *command.split()], cwd=folder, check=True, stderr=subprocess.DEVNULL
            )
    return folder


@contextlib.contextmanager
def collecting(folder: Path, certificates: Path, *more: str) -> Iterator[int]:
    """The port of a collector that keeps cores in a folder."""
    with subprocess.Popen(
        [
            *(sys.executable, str(RECEIVER), "localhost:0", str(folder)),
            *("--cert", "ours.pem", "--key", "ours.key", *more),
        ],
        cwd=certificates,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline().rpartition(" ")[2])
        finally:
            process.kill()
