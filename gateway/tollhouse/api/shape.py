"""OpenAI's own shape of each answer, of its chunks and of its events, and nothing beside it.

Source of the formats: the OpenAI API reference and the response models of its Python SDK. Where a
shape depends on ``type``, there is a table of them; a type that is not in it is kept whole.
"""

from collections.abc import Mapping
from typing import Any

Shape = Mapping[str, Any]
"""Every field that there is, with the shape of its value, or of each item in its list; None where
the value is taken whole, whatever is in it."""


class ByType(dict[str, Shape]):
    """Shapes by the value's own ``type``."""


def _fields(names: str, **nested: Shape) -> Shape:
    return {**dict.fromkeys(names.split()), **nested}


_CALL = _fields("id type", function=_fields("name arguments"), custom=_fields("name input"))
_CALL_PIECE = _fields("index id type", function=_fields("name arguments"))
_TOKEN = {"token": None, "bytes": None, "logprob": None}
_LOGPROB = {**_TOKEN, "top_logprobs": _TOKEN}
_DELTA = {
    "role": None,
    "content": None,
    "refusal": None,
    "audio": {"id": None, "data": None, "expires_at": None, "transcript": None},
    "function_call": {"name": None, "arguments": None},
    "tool_calls": _CALL_PIECE,
}
_MESSAGE = {
    **_DELTA,
    "tool_calls": _CALL,
    "annotations": {
        "type": None,
        "url_citation": {"end_index": None, "start_index": None, "title": None, "url": None},
    },
}
_USAGE = {
    "prompt_tokens": None,
    "completion_tokens": None,
    "total_tokens": None,
    "prompt_tokens_details": _fields(
        "audio_tokens cached_tokens cache_write_tokens image_tokens text_tokens"
    ),
    "completion_tokens_details": _fields(
        "accepted_prediction_tokens audio_tokens reasoning_tokens rejected_prediction_tokens"
        " text_tokens"
    ),
}
CHAT = {
    "id": None,
    "object": None,
    "created": None,
    "model": None,
    "choices": {
        "index": None,
        "message": _MESSAGE,
        "delta": _DELTA,
        "finish_reason": None,
        "logprobs": {"content": _LOGPROB, "refusal": _LOGPROB},
    },
    "usage": _USAGE,
    "service_tier": None,
    "system_fingerprint": None,
}

COMPLETION = _fields(
    "id object created model system_fingerprint",
    choices=_fields("index text logprobs finish_reason"),
    usage=_USAGE,
)
EMBEDDINGS = _fields(
    "object model",
    data=_fields("object index embedding"),
    usage=_fields("prompt_tokens total_tokens"),
)
MODERATION = _fields(
    "id model",
    results=_fields("flagged categories category_scores category_applied_input_types"),
)
_IMAGE_TOKENS = _fields("image_tokens text_tokens")
_IMAGE_USAGE = _fields(
    "input_tokens output_tokens total_tokens",
    input_tokens_details=_IMAGE_TOKENS,
    output_tokens_details=_IMAGE_TOKENS,
)
IMAGES = _fields(
    "created background output_format quality size safety_identifier svg_usage",
    data=_fields("b64_json url revised_prompt"),
    usage=_IMAGE_USAGE,
)
_AUDIO_USAGE = _fields(
    "type seconds input_tokens output_tokens total_tokens",
    input_token_details=_fields("audio_tokens text_tokens"),
)
TRANSCRIPTION = _fields(
    "text languages logprobs task duration language segments words", usage=_AUDIO_USAGE
)
"""One for the plain answer, ``verbose_json`` and ``diarized_json``."""
TRANSLATION = _fields("text duration language segments")
_IMAGE_EVENT = "type b64_json created_at size quality background output_format"
_LAST_IMAGE = _fields(
    f"{_IMAGE_EVENT} safety_identifier",
    usage=_fields("input_tokens output_tokens total_tokens", input_tokens_details=_IMAGE_TOKENS),
)
EVENTS = ByType(
    {
        "image_generation.partial_image": _fields(f"{_IMAGE_EVENT} partial_image_index"),
        "image_generation.completed": _LAST_IMAGE,
        "image_edit.partial_image": _fields(f"{_IMAGE_EVENT} partial_image_index"),
        "image_edit.completed": _LAST_IMAGE,
        "transcript.text.delta": _fields("type delta logprobs segment_id"),
        "transcript.text.segment": _fields("type id start end speaker text"),
        "transcript.text.done": _fields(
            "type text languages logprobs",
            usage=_fields(
                "type input_tokens output_tokens total_tokens",
                input_token_details=_fields("audio_tokens text_tokens"),
            ),
        ),
        "speech.audio.delta": _fields("type audio"),
        "speech.audio.done": _fields(
            "type", usage=_fields("input_tokens output_tokens total_tokens")
        ),
    }
)
"""What images and audio stream."""

_ANNOTATION = ByType(
    {
        "url_citation": _fields("type url title start_index end_index"),
        "file_citation": _fields("type file_id filename index"),
        "container_file_citation": _fields(
            "type container_id file_id filename start_index end_index"
        ),
        "file_path": _fields("type file_id index"),
    }
)
_CONTENT = ByType(
    {
        "output_text": _fields("type text", annotations=_ANNOTATION, logprobs=_LOGPROB),
        "refusal": _fields("type refusal"),
    }
)
_TEXT = _fields("type text")
_ANY_CONTENT = ByType({**_CONTENT, "reasoning_text": _TEXT})
ITEM = ByType(
    {
        "message": _fields("type id role status phase", content=_CONTENT),
        "reasoning": _fields("type id status encrypted_content", summary=_TEXT, content=_TEXT),
        "function_call": _fields("type id call_id name arguments status namespace async caller"),
        "custom_tool_call": _fields("type id call_id name input namespace async caller"),
        "web_search_call": _fields("type id status action"),
        "file_search_call": _fields("type id status queries results"),
        "image_generation_call": _fields(
            "type id status result action background error output_format quality revised_prompt"
            " size svg_usage"
        ),
        "code_interpreter_call": _fields("type id status code container_id outputs"),
        "computer_call": _fields("type id call_id status action actions pending_safety_checks"),
        "local_shell_call": _fields("type id call_id status action"),
        "shell_call": _fields("type id call_id status action environment caller created_by"),
        "apply_patch_call": _fields("type id call_id status operation caller created_by"),
        "mcp_call": _fields(
            "type id status name arguments server_label approval_request_id error output"
        ),
        "mcp_list_tools": _fields("type id server_label tools error"),
        "mcp_approval_request": _fields("type id name arguments server_label"),
        "compaction": _fields("type id encrypted_content created_by"),
    }
)
"""What stands in a response's ``output``; results of tools, which callers send, are kept whole."""
RESPONSE = _fields(
    "id object created_at completed_at status model access_programs background conversation image"
    " input_transformations instructions max_output_tokens max_tool_calls metadata moderation"
    " parallel_tool_calls previous_response_id prompt prompt_cache_diagnostics prompt_cache_key"
    " prompt_cache_options prompt_cache_retention safety_identifier service_tier temperature"
    " tool_choice tool_usage tools top_logprobs top_p truncation user",
    error=_fields("code message type param misalignment"),
    incomplete_details=_fields("reason"),
    output=ITEM,
    reasoning=_fields("effort summary generate_summary mode context"),
    text=_fields("format verbosity"),
    usage=_fields(
        "input_tokens output_tokens total_tokens",
        input_tokens_details=_fields("cached_tokens cache_write_tokens cache_write_tokens_details"),
        output_tokens_details=_fields("reasoning_tokens"),
    ),
)
_PLACE = "type sequence_number output_index item_id"
_PIECE = f"{_PLACE} content_index"
_SUMMARY = f"{_PLACE} summary_index"
_PIECE_LOGPROB = _fields("token logprob", top_logprobs=_fields("token logprob"))
_STATE = _fields("type sequence_number", response=RESPONSE)
_STEP = _fields(_PLACE)
RESPONSE_EVENTS = ByType(
    {
        **{
            f"response.{state}": _STATE
            for state in ["queued", "created", "in_progress", "completed", "incomplete", "failed"]
        },
        **{
            f"response.output_item.{step}": _fields(_PLACE.removesuffix(" item_id"), item=ITEM)
            for step in ("added", "done")
        },
        **{
            f"response.content_part.{step}": _fields(_PIECE, part=_ANY_CONTENT)
            for step in ("added", "done")
        },
        "response.output_text.delta": _fields(f"{_PIECE} delta", logprobs=_PIECE_LOGPROB),
        "response.output_text.done": _fields(f"{_PIECE} text", logprobs=_PIECE_LOGPROB),
        "response.output_text.annotation.added": _fields(
            f"{_PIECE} annotation_index", annotation=_ANNOTATION
        ),
        "response.refusal.delta": _fields(f"{_PIECE} delta"),
        "response.refusal.done": _fields(f"{_PIECE} refusal"),
        "response.reasoning_text.delta": _fields(f"{_PIECE} delta"),
        "response.reasoning_text.done": _fields(f"{_PIECE} text"),
        "response.reasoning_summary_part.added": _fields(_SUMMARY, part=_TEXT),
        "response.reasoning_summary_part.done": _fields(f"{_SUMMARY} status", part=_TEXT),
        "response.reasoning_summary_text.delta": _fields(f"{_SUMMARY} delta"),
        "response.reasoning_summary_text.done": _fields(f"{_SUMMARY} text"),
        **{
            f"response.{call}.delta": _fields(f"{_PLACE} delta")
            for call in (
                *("function_call_arguments", "mcp_call_arguments", "custom_tool_call_input"),
                "code_interpreter_call_code",
            )
        },
        "response.function_call_arguments.done": _fields(f"{_PLACE} arguments"),
        "response.mcp_call_arguments.done": _fields(f"{_PLACE} arguments"),
        "response.custom_tool_call_input.done": _fields(f"{_PLACE} input"),
        "response.code_interpreter_call_code.done": _fields(f"{_PLACE} code"),
        **{
            f"response.{call}.{step}": _STEP
            for call, steps in {
                "image_generation_call": "in_progress generating completed",
                "web_search_call": "in_progress searching completed",
                "file_search_call": "in_progress searching completed",
                "code_interpreter_call": "in_progress interpreting completed",
                "mcp_call": "in_progress completed failed",
                "mcp_list_tools": "in_progress completed failed",
                "compaction": "compacting",
            }.items()
            for step in steps.split()
        },
        "response.image_generation_call.partial_image": _fields(
            f"{_PLACE} partial_image_b64 partial_image_index background output_format quality size"
        ),
    }
)
"""The events of ``/v1/responses``."""


def only(shape: Shape | None, value: Any) -> Any:
    """A decoded value without the fields that are not in the shape."""
    if shape is None:
        return value
    if isinstance(value, list):
        return [only(shape, item) for item in value]
    if isinstance(value, dict):
        fields = _of_type(shape, value) if isinstance(shape, ByType) else shape
        if fields is None:
            return value
        return {name: only(fields[name], item) for name, item in value.items() if name in fields}
    return value


def _of_type(shapes: ByType, value: Mapping[str, Any]) -> Shape | None:
    kind = value.get("type")
    return shapes.get(kind) if isinstance(kind, str) else None
