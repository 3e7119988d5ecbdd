"""OpenAI's own shape of a chat completion and of its chunks, and nothing beside it.

Source of the format: the OpenAI API reference and the response models of its Python SDK.
"""

from typing import Any

_CALL = {
    "id": None,
    "index": None,
    "type": None,
    "function": {"name": None, "arguments": None},
    "custom": {"name": None, "input": None},
}
_TOKEN = {"token": None, "bytes": None, "logprob": None}
_LOGPROB = {**_TOKEN, "top_logprobs": _TOKEN}
_PART = {
    "role": None,
    "content": None,
    "refusal": None,
    "annotations": {
        "type": None,
        "url_citation": {"end_index": None, "start_index": None, "title": None, "url": None},
    },
    "audio": {"id": None, "data": None, "expires_at": None, "transcript": None},
    "function_call": {"name": None, "arguments": None},
    "tool_calls": _CALL,
}
_USAGE = {
    "prompt_tokens": None,
    "completion_tokens": None,
    "total_tokens": None,
    "prompt_tokens_details": {"audio_tokens": None, "cached_tokens": None},
    "completion_tokens_details": {
        "accepted_prediction_tokens": None,
        "audio_tokens": None,
        "reasoning_tokens": None,
        "rejected_prediction_tokens": None,
    },
}
_COMPLETION = {
    "id": None,
    "object": None,
    "created": None,
    "model": None,
    "choices": {
        "index": None,
        "message": _PART,
        "delta": _PART,
        "finish_reason": None,
        "logprobs": {"content": _LOGPROB, "refusal": _LOGPROB},
    },
    "usage": _USAGE,
    "service_tier": None,
    "system_fingerprint": None,
}
"""Every field that there is; None where its value is taken whole, whatever is in it."""


def completion(answer: dict[str, Any]) -> dict[str, Any]:
    """A decoded answer or chunk without the fields that OpenAI's have not."""
    kept: dict[str, Any] = _only(_COMPLETION, answer)
    return kept


def _only(shape: dict[str, Any] | None, value: Any) -> Any:
    if shape is None:
        return value
    if isinstance(value, list):
        return [_only(shape, item) for item in value]
    if isinstance(value, dict):
        return {name: _only(shape[name], item) for name, item in value.items() if name in shape}
    return value
