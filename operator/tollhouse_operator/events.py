"""Events: what ``kubectl describe`` tells about an object beside its conditions."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog

from tollhouse_operator.cluster import CallError, Cluster, path

_log = structlog.get_logger(__name__)

_MAX_NOTE = 1000


@dataclass(frozen=True, slots=True)
class Note:
    """An event to be: ``type`` is Normal or Warning."""

    type: str
    reason: str
    text: str


async def post(
    cluster: Cluster, identity: str, regarding: Mapping[str, Any], note: Note, action: str
) -> None:
    """Tell of ``regarding``, a manifest. One that is not taken is logged: it is only a message.

    ``identity`` is this replica's name, ``action`` what it was doing.
    """
    metadata = regarding["metadata"]
    namespace, name = metadata["namespace"], metadata["name"]
    event = {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"namespace": namespace, "name": f"{name[:200]}.{uuid.uuid4().hex[:16]}"},
        "eventTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "reportingController": "tollhouse.dev/operator",
        "reportingInstance": identity[:128],
        "type": note.type,
        "reason": note.reason,
        "action": action,
        "note": note.text[:_MAX_NOTE],
        "regarding": {
            "apiVersion": regarding["apiVersion"],
            "kind": regarding["kind"],
            "namespace": namespace,
            "name": name,
            "uid": metadata["uid"],
        },
    }
    try:
        await cluster.create(path("Event", namespace), event)
    except CallError as error:
        _log.warning("event not posted", kind=regarding["kind"], name=name, error=str(error))
