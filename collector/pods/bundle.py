"""What container runtimes write of a container beside it: its pod's names, image, annotations.

    containerd   io.kubernetes.cri.*     annotations of config.json (OCI runtime spec); the pod's
                                         own only where `pod_annotations` of its settings names them
    CRI-O        io.kubernetes.cri-o.*   the same; the pod's annotations beside them, its labels in
                                         the config.json of the pod's sandbox
    docker       io.kubernetes.*         labels of config.v2.json, as cri-dockerd makes them; the
                                         pod's own are those of its sandbox

A container's processes cannot write these files; yet whoever makes a pod says what many of the
texts are. A name that no object of Kubernetes can have is none; labels and annotations are bounded,
and long ones left out. Pure.

Sources: containerd's pkg/cri/annotations, CRI-O's pkg/annotations, cri-dockerd's core/labels.go.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import msgspec

_CRI = "io.kubernetes.cri."
_CRIO = "io.kubernetes.cri-o."
_OWN = re.compile(  # annotations and labels that runtimes and kubelets make for themselves
    r"io\.kubernetes\.|io\.container\.|org\.(?:systemd|opencontainers)\.|(?:[a-z.]*\.)?kubernetes\.io/"
    r"config\.|annotation\."
)
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")  # DNS-1123 subdomain
_IMAGE = re.compile(r"[!-~]{1,512}")  # one word
_KEY = re.compile(r"(?:[a-z0-9.-]{1,253}/)?[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
OURS = "coreward/"  # begins the names of those that are for us
_SANDBOX = re.compile("[0-9a-f]{64}")
_MOST, _LONGEST = 32, 256  # labels, or annotations, of one pod; characters of a value


class Names(msgspec.Struct, frozen=True, kw_only=True):
    """What one such file says. None: it does not say it."""

    uid: str | None = None
    name: str | None = None
    namespace: str | None = None
    container: str | None = None
    image: str | None = None
    sandbox: str | None = None  # id of the container that stands for the pod
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class _Spec(msgspec.Struct):
    annotations: dict[str, str] = {}


class _DockerConfig(msgspec.Struct, rename="pascal"):
    labels: dict[str, str] | None = None
    image: str | None = None


class _Docker(msgspec.Struct, rename="pascal"):
    config: _DockerConfig = msgspec.field(default_factory=_DockerConfig)


def of_spec(text: bytes) -> Names | None:
    """Of a config.json. None: it is no pod's, or cannot be understood."""
    try:
        given = msgspec.json.decode(text, type=_Spec).annotations
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if any(key.startswith(_CRIO) for key in given):
        return _of_crio(given)
    return _of_containerd(given)


def of_docker(text: bytes) -> Names | None:
    """Of a config.v2.json. The same."""
    try:
        config = msgspec.json.decode(text, type=_Docker).config
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    given = config.labels or {}
    if "io.kubernetes.pod.uid" not in given:
        return None
    prefix = "annotation."
    annotations = [(k.removeprefix(prefix), v) for k, v in given.items() if k.startswith(prefix)]
    return Names(
        **_kubelets(given),
        image=_image(config.image),
        sandbox=_matching(_SANDBOX, given.get("io.kubernetes.sandbox.id")),
        labels=_bounded(given.items()),
        annotations=_bounded(annotations),
    )


def _of_containerd(given: Mapping[str, str]) -> Names | None:
    if f"{_CRI}sandbox-id" not in given:
        return None
    return Names(
        uid=given.get(f"{_CRI}sandbox-uid"),
        name=checked_name(given.get(f"{_CRI}sandbox-name")),
        namespace=checked_name(given.get(f"{_CRI}sandbox-namespace")),
        container=checked_name(given.get(f"{_CRI}container-name")),
        image=_image(given.get(f"{_CRI}image-name")),
        annotations=_bounded(given.items()),
    )


def _of_crio(given: Mapping[str, str]) -> Names:
    """Labels are a text of JSON in one annotation; of a container only the kubelet's own."""
    labels = _object(given.get(f"{_CRIO}Labels"))
    own = _object(given.get(f"{_CRIO}Annotations"))
    container = given.get(f"{_CRIO}ContainerType") == "container"
    image = given.get(f"{_CRIO}ImageName") or given.get(f"{_CRIO}Image")
    return Names(
        **_kubelets({**labels, **given}),
        image=_image(image) if container else None,
        sandbox=_matching(_SANDBOX, given.get(f"{_CRIO}SandboxID")) if container else None,
        labels={} if container else _bounded(labels.items()),
        annotations=_bounded((own if own and not container else given).items()),
    )


def _kubelets(given: Mapping[str, str]) -> dict[str, str | None]:
    """The labels by which the kubelet tells containers apart."""
    return {
        "uid": given.get("io.kubernetes.pod.uid"),
        "name": checked_name(given.get("io.kubernetes.pod.name")),
        "namespace": checked_name(given.get("io.kubernetes.pod.namespace")),
        "container": checked_name(given.get("io.kubernetes.container.name")),
    }


def _object(text: str | None) -> dict[str, str]:
    try:
        return msgspec.json.decode(text or "{}", type=dict[str, str])
    except (msgspec.MsgspecError, RecursionError):
        return {}


def checked_name(text: str | None) -> str | None:
    """A name that an object of Kubernetes can have; None for any other text."""
    return _matching(_NAME, text)


def _image(text: str | None) -> str | None:
    return _matching(_IMAGE, text)


def _matching(wanted: re.Pattern[str], text: str | None) -> str | None:
    return text if text is not None and wanted.fullmatch(text) else None


def _bounded(given: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Those of people, as many as are kept, in the order of their names after ours."""
    kept = (
        (key, value)
        for key, value in given
        if len(value) <= _LONGEST and _KEY.fullmatch(key) and not _OWN.match(key)
    )
    return dict(sorted(kept, key=_first_ours)[:_MOST])


def _first_ours(one: tuple[str, str]) -> tuple[bool, str]:
    return not one[0].startswith(OURS), one[0]
