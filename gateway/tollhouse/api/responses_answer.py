"""Answers of ``/v1/responses``: made from chat completions, or a provider's own.

Source of the format: the OpenAI API reference, "The response object".
"""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import msgspec

from tollhouse.api import additions, shape, usage
from tollhouse.api.additions import Origin
from tollhouse.api.responses import ResponsesRequest
from tollhouse.api.usage import Usage

_NULL = msgspec.Raw(b"null")
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


class Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct):
    """A tool call, or in a stream a piece of one; ``index`` says which one it belongs to."""

    id: str | None = None
    index: int | None = None
    function: Function | None = None


class Message(msgspec.Struct):
    """What a translation reads of a chat message or of a stream's delta."""

    content: str | list[dict[str, Any]] | None = None
    refusal: str | None = None
    reasoning: str | dict[str, Any] | list[Any] | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    annotations: Any = None
    images: Any = None

    @property
    def citations(self) -> list[dict[str, Any]]:
        """The pages that the words cite, as a response has them."""
        given = self.annotations if isinstance(self.annotations, list) else []
        return [cited for it in given if (cited := _citation(it)) is not None]

    @property
    def pictures(self) -> list[str]:
        """The URLs of the images that the model made, mostly data URIs."""
        given = self.images if isinstance(self.images, list) else []
        return [url for it in given if (url := _url_of(it)) is not None]

    @property
    def text(self) -> str:
        """The words, whether they came as a string or in parts."""
        if isinstance(self.content, list):
            return "".join(str(part.get("text") or "") for part in self.content)
        return self.content or ""

    @property
    def thoughts(self) -> str:
        """The reasoning, by whichever of its two common names."""
        return self.reasoning_content or (self.reasoning if isinstance(self.reasoning, str) else "")


class Logprobs(msgspec.Struct):
    """The log probabilities of a choice's tokens; each has the same form in a response."""

    content: list[dict[str, Any]] | None = None


class _Choice(msgspec.Struct):
    message: Message
    finish_reason: str | None = None
    logprobs: Logprobs | None = None


class _Item(msgspec.Struct):
    type: str | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    model: msgspec.Raw = _NULL
    usage: msgspec.Raw = _NULL


_completion_decoder = msgspec.json.Decoder(_Completion)
_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_items_decoder = msgspec.json.Decoder(list[_Item] | None)


class Frame:
    """The fields that every state of one response shares: its ids, and what was asked.

    ``name`` is what its ids end in, ``created`` its time in seconds since 1970.
    """

    def __init__(self, request: ResponsesRequest, *, name: str, created: int) -> None:
        self.name = name
        self.request = request
        asked = request.fields
        self._fields: dict[str, Any] = {
            "id": f"resp_{name}",
            "object": "response",
            "created_at": created,
            "background": False,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": asked.get("metadata", {}),
            "model": request.model,
            "parallel_tool_calls": asked.get("parallel_tool_calls", True),
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None, **request.reasoning},
            "service_tier": asked.get("service_tier"),
            # Nothing is kept here, whatever was asked.
            "store": False,
            "temperature": asked.get("temperature"),
            "text": {"format": {"type": "text"}, **request.text},
            "tool_choice": request.tool_choice or "auto",
            "tools": [_shown(tool) for tool in request.tools],
            "top_logprobs": request.top_logprobs,
            "top_p": asked.get("top_p"),
            "truncation": "disabled",
            "user": asked.get("user"),
        }

    def response(
        self,
        status: str,
        output: list[dict[str, Any]],
        counted: Usage | None = None,
        *,
        reason: str | None = None,
        error: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The response in this state; ``reason`` says why it is incomplete."""
        return {
            **self._fields,
            "status": status,
            "error": error,
            "incomplete_details": None if reason is None else {"reason": reason},
            "output": output,
            "usage": None if counted is None else _shown_usage(counted),
        }

    def reasoning_item(self, index: int, text: str, status: str) -> dict[str, Any]:
        """``index`` is the item's place in the output, here and below."""
        summary = [{"type": "summary_text", "text": text}] if text else []
        return {
            "id": f"rs_{self.name}_{index}",
            "type": "reasoning",
            "summary": summary,
            "status": status,
        }

    def message_item(
        self, index: int, content: list[dict[str, Any]], status: str
    ) -> dict[str, Any]:
        return {
            "id": f"msg_{self.name}_{index}",
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def call_item(
        self, index: int, call_id: str | None, name: str, arguments: str, status: str
    ) -> dict[str, Any]:
        return {
            "id": f"fc_{self.name}_{index}",
            "type": "function_call",
            "call_id": call_id or f"call_{self.name}_{index}",
            "name": name,
            "arguments": arguments,
            "status": status,
        }

    def image_item(self, index: int, url: str | None, status: str) -> dict[str, Any]:
        """``url`` None as long as the image is not there."""
        item: dict[str, Any] = {
            "id": f"ig_{self.name}_{index}",
            "type": "image_generation_call",
            "status": status,
            "result": url,
        }
        head, comma, data = (url or "").partition(",")
        if comma and head.startswith("data:image/") and head.endswith(";base64"):
            form = head.removeprefix("data:image/").partition(";")[0]
            item |= {"result": data, "output_format": form}
        return item


def text_part(
    text: str, logprobs: list[dict[str, Any]], citations: list[dict[str, Any]]
) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": citations, "logprobs": logprobs}


def logprobs_of(given: Logprobs | None) -> list[dict[str, Any]]:
    """The log probabilities as a response lists them: none is an empty list."""
    return (given and given.content) or []


def refusal_part(text: str) -> dict[str, Any]:
    return {"type": "refusal", "refusal": text}


def outcome(finish_reason: str | None) -> tuple[str, str | None]:
    """A response's status, and why it is incomplete, for a chat completion's finish reason."""
    reason = _INCOMPLETE.get(finish_reason or "")
    return ("completed", None) if reason is None else ("incomplete", reason)


def from_chat(
    body: bytes, frame: Frame, *, excluded: bool = False
) -> tuple[dict[str, Any], Usage | None]:
    """The response that a whole chat completion comes to, and its usage.

    Its ``model`` is the provider's; ``excluded`` leaves the reasoning out. Raises ValueError for a
    body that is no chat completion.
    """
    try:
        completion = _completion_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError("the answer is not a chat completion") from error
    if not completion.choices:
        raise ValueError("the answer has no choices")
    choice = completion.choices[0]
    message = choice.message
    status, reason = outcome(choice.finish_reason)
    output: list[dict[str, Any]] = []
    if message.thoughts and not excluded:
        output.append(frame.reasoning_item(0, message.thoughts, "completed"))
    if message.text or message.citations:
        part = text_part(message.text, logprobs_of(choice.logprobs), message.citations)
        output.append(frame.message_item(len(output), [part], status))
    if message.refusal:
        output.append(frame.message_item(len(output), [refusal_part(message.refusal)], status))
    for url in message.pictures:
        output.append(frame.image_item(len(output), url, "completed"))
    for call in message.tool_calls or ():
        function = call.function or Function()
        arguments = function.arguments or "{}"
        output.append(frame.call_item(len(output), call.id, function.name or "", arguments, status))
    counted = usage.read(completion.usage)
    response = frame.response(status, output, counted, reason=reason)
    return {**response, "model": completion.model}, counted


def from_native(body: bytes) -> tuple[dict[str, Any], Usage | None]:
    """The fields of a provider's own response, and its usage.

    Raises ValueError for a body that is no response.
    """
    try:
        fields: dict[str, Any] = dict(_fields_decoder.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError("the answer is not a response") from error
    return fields, read_native_usage(fields)


def encoded(fields: Mapping[str, Any], origin: Origin, price: Decimal | None) -> bytes:
    """A whole response as the caller gets it; ``price`` (USD) is that of its usage."""
    shown = additions.response(fields, origin, price)
    if origin.strict:
        return additions.strictly(shape.RESPONSE, shown)
    return msgspec.json.encode(shown)


def read_native_usage(fields: Mapping[str, msgspec.Raw]) -> Usage | None:
    """The usage in a provider's own response, with the searches among its items; None without."""
    counted = usage.read(fields.get("usage"))
    if counted is None or counted.web_searches is not None:
        return counted
    try:
        items = _items_decoder.decode(fields.get("output", _NULL))
    except msgspec.MsgspecError:
        items = None
    searches = sum(item.type == "web_search_call" for item in items or ())
    return msgspec.structs.replace(counted, web_searches=searches) if searches else counted


def _shown_usage(counted: Usage) -> dict[str, Any]:
    """The usage of a response, from that of the chat completion behind it."""
    return {
        "input_tokens": counted.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": counted.cached_tokens or 0,
            "cache_write_tokens": counted.cache_write_tokens or 0,
        },
        "output_tokens": counted.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": counted.reasoning_tokens or 0},
        "total_tokens": counted.total,
    }


def _shown(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool as a response repeats it, with the fields that a request may leave out."""
    if tool.get("type") != "function":
        return tool
    return {"description": None, "parameters": None, "strict": False, **tool}


def _citation(annotation: object) -> dict[str, Any] | None:
    """A chat annotation in a response's flatter form; None for one that a response has not."""
    if not isinstance(annotation, dict) or annotation.get("type") != "url_citation":
        return None
    cited = annotation.get("url_citation")
    if not isinstance(cited, dict) or not isinstance(cited.get("url"), str):
        return None
    return {
        "type": "url_citation",
        "start_index": cited.get("start_index") or 0,
        "end_index": cited.get("end_index") or 0,
        "title": cited.get("title") or "",
        "url": cited["url"],
    }


def _url_of(image: object) -> str | None:
    given = image.get("image_url") if isinstance(image, dict) else None
    url = given.get("url") if isinstance(given, dict) else None
    return url if isinstance(url, str) else None
