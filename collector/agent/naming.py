"""Which bug a death was: its signature, what is known of that, and whether it is a new one."""

from __future__ import annotations

import logging

from collector.agent.context import Context
from collector.errors import StoreError
from collector.model import Record, SignatureBasis
from collector.policy.collect import Place
from collector.signature.compose import signed
from collector.signature.note import noted

log = logging.getLogger(__name__)


def named(context: Context, record: Record, place: Place | None) -> Record:
    """The whole record with its signature; counted by whether such deaths were seen before.

    place: where it died. One that was not unwound is taken for what others there were, and says so.
    """
    like = None if place is None else context.places.signature(place)
    record = signed(record, like)
    signature = record.signature
    if signature is None or signature.id is None:
        return record
    if place is not None and signature.frames and signature.basis is SignatureBasis.FRAMES:
        context.places.learn(place, signature)
    seen = "new"
    try:
        record = noted(record, context.store.notes.read(signature.id))
        seen = "again" if context.store.signatures.has(signature.id) else "new"
    except StoreError as error:  # of a note that is damaged, or of the index
        log.warning("%s", error)
    if record.signature is not None and record.signature.regression:
        seen = "regression"
    context.metrics.signatures.labels(seen).inc()
    return record
