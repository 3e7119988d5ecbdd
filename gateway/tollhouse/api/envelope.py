"""The error envelope, ``{"error": {"message", "type", "param", "code"}}``, on every path."""

from typing import Any

import msgspec

from tollhouse.errors import RequestError


def error_object(error: RequestError) -> dict[str, Any]:
    """The envelope's content as plain data, ``metadata`` only where there is some."""
    body: dict[str, Any] = {
        "message": error.message,
        "type": error.kind.type,
        "param": error.param,
        "code": error.code,
    }
    if error.metadata:
        body["metadata"] = dict(error.metadata)
    return {"error": body}


def encode(error: RequestError) -> bytes:
    """The envelope as a JSON body."""
    return msgspec.json.encode(error_object(error))


def headers(error: RequestError) -> dict[str, str]:
    """The answer's headers: the error's own and ``x-should-retry``, which OpenAI's SDKs obey."""
    result = dict(error.headers)
    if error.kind.retryable is not None:
        result["x-should-retry"] = "true" if error.kind.retryable else "false"
    return result
