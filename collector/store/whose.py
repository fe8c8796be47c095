"""Whose share of the store a record takes, of which service it is, and which crashes are alike.

What is a fair share follows from these. An owner is whoever could fill the store by himself: a user
makes as many units and executables as he likes, and all of them are his. What root runs goes by its
unit or cgroup. Within an owner's share each of his services has one.
"""

from __future__ import annotations

try:  # hashlib would load OpenSSL: see ids
    from _blake2 import blake2b
except ImportError:  # an interpreter without the built-in module
    from hashlib import blake2b

from collector.model import Record

_KIND_BYTES = 8


def owner_of(record: Record) -> str:
    """Where nobody said, its user's; of root's its unit or cgroup, as `agent.owner` has it."""
    if record.owner is not None:
        return record.owner
    if record.uid == 0 and (record.unit or record.cgroup):
        return record.unit or record.cgroup or ""
    return f"uid {'unknown' if record.uid is None else record.uid}"


def service_of(record: Record) -> str:
    """The unit, else the cgroup of a container or of another manager, else the program. In a pod
    each start of a container has a unit of its own: there it is the container's name."""
    if record.pod is not None and record.pod.namespace and record.pod.container:
        return f"pod {record.pod.namespace}/{record.pod.container}"
    return record.unit or record.cgroup or record.exe or record.comm


def kind_of(record: Record, owner: str, service: str) -> str:
    """The same for crashes that are alike: of one service, in one program, with one signature; as
    long as they have none, at one place."""
    where = str(record.signal if record.signal is not None else record.exit_code)
    if record.signature is not None and record.signature.id is not None:
        where = record.signature.id
    elif record.site is not None:
        where = f"{record.site.build_id}+{record.site.offset:x}"
    words = (owner, service, record.exe or record.comm, record.cause.value, where)
    text = "\0".join(words).encode("utf-8", "backslashreplace")
    return blake2b(text, digest_size=_KIND_BYTES).hexdigest()
