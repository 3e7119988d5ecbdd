"""Chat completions: what callers send, in OpenAI's shape.

Source of the format: the OpenAI API reference, "Create chat completion". ``reasoning`` is
OpenRouter's, ``thinking`` Anthropic's, ``webSearchEnabled`` LLMTR's, ``free_models_only`` LLM
Gateway's. A request's fields are kept as the bytes that came (``msgspec.Raw``), so that what the
gateway does not need to change reaches the provider unchanged, unknown fields included.

The same types check requests and make the OpenAPI document. Null is the same as absent. What a
provider alone can judge (a model's own parameters, the types of tools and parts that are newer than
this file) is not judged here.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from tollhouse.api import checking
from tollhouse.api.checking import AnyObject, missing

GATEWAY_FIELDS = frozenset({"webSearchEnabled", "free_models_only"})
"""Fields that speak to the gateway alone: no provider is sent them."""

MOST_STOPS = 16
"""OpenAI takes 4 stop sequences; other providers take more and refuse what is too much for them."""

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Positive = Annotated[int, Meta(ge=1)]
Name = Annotated[str, Meta(min_length=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]


class ImageURL(msgspec.Struct):
    """An image: an ``https:`` URL or a ``data:`` URI."""

    url: Annotated[str, Meta(pattern=checking.IMAGE_URL)]
    detail: Literal["auto", "low", "high", "original"] | None = None


class InputAudio(msgspec.Struct):
    """Sound, base64-encoded."""

    data: str
    format: Name


class Part(msgspec.Struct):
    """One piece of a message. A type that the gateway does not know goes to the provider."""

    type: Name
    text: str | None = None
    image_url: ImageURL | None = None
    input_audio: InputAudio | None = None
    file: AnyObject | None = None
    refusal: str | None = None


class CalledFunction(msgspec.Struct):
    """The function that the model called; ``arguments`` is JSON as the model wrote it."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct):
    """One call that the model asked for in an earlier turn."""

    id: str
    type: Name | None = None
    function: CalledFunction | None = None


class Message(msgspec.Struct):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: CalledFunction | None = None
    refusal: str | None = None
    audio: AnyObject | None = None


class Function(msgspec.Struct):
    """A function that the model may call; ``parameters`` is a JSON schema."""

    name: Name
    description: str | None = None
    parameters: AnyObject | None = None
    strict: bool | None = None


class Tool(msgspec.Struct):
    """A function, ``web_search``, or another type that the provider knows."""

    type: Name
    function: Function | None = None


class NamedFunction(msgspec.Struct):
    """A function by its name."""

    name: Name


class ToolChoice(msgspec.Struct):
    """The tool to call: a named function, or another form that the provider knows."""

    type: Name
    function: NamedFunction | None = None


class JSONSchema(msgspec.Struct):
    """The schema that the answer is to follow."""

    name: Name
    schema: AnyObject
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct):
    """Plain text, any JSON object, or JSON by a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchema | None = None


class StreamOptions(msgspec.Struct):
    """What a stream carries beside the answer."""

    include_usage: bool | None = None


class Reasoning(msgspec.Struct, frozen=True):
    """How much to think, in a word or in tokens; ``exclude`` keeps thoughts out of the answer."""

    effort: Effort | None = None
    max_tokens: Annotated[int, Meta(ge=0)] | None = None
    exclude: bool | None = None


class Thinking(msgspec.Struct, frozen=True):
    """Whether to think, and for how many tokens at most."""

    type: Literal["enabled", "disabled"]
    budget_tokens: Annotated[int, Meta(ge=0)] | None = None


class ChatBody(msgspec.Struct):
    """A request for a chat completion. Fields that are not listed reach the provider untouched."""

    model: Name
    messages: Annotated[list[Message], Meta(min_length=1)]
    audio: AnyObject | None = None
    frequency_penalty: Penalty | None = None
    free_models_only: bool | None = None
    function_call: Name | NamedFunction | None = None
    functions: list[Function] | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    logprobs: bool | None = None
    max_completion_tokens: Positive | None = None
    max_tokens: Positive | None = None
    metadata: AnyObject | None = None
    modalities: list[Name] | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    parallel_tool_calls: bool | None = None
    prediction: AnyObject | None = None
    presence_penalty: Penalty | None = None
    reasoning: Reasoning | None = None
    reasoning_effort: Effort | None = None
    response_format: ResponseFormat | None = None
    seed: int | None = None
    service_tier: Name | None = None
    stop: str | Annotated[list[str], Meta(max_length=MOST_STOPS)] | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    thinking: Thinking | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    tools: list[Tool] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    user: str | None = None
    web_search_enabled: bool | None = msgspec.field(default=None, name="webSearchEnabled")


class ChatRequest(msgspec.Struct, frozen=True):
    """A checked request. ``fields`` holds the bytes of every top-level field, in their order."""

    model: str
    messages: list[Message]
    stream: bool
    wants_usage: bool
    max_tokens: int | None
    max_completion_tokens: int | None
    n: int
    user: str | None
    tools: list[Tool]
    reasoning_effort: Effort | None
    reasoning: Reasoning | None
    thinking: Thinking | None
    web_search: bool
    """Whether the caller asks for it, by a tool or by ``webSearchEnabled``."""
    web_search_tool: str | None
    """The type of the tool that asks for it, such as ``web_search_preview``."""
    free_models_only: bool
    has_images: bool
    has_tools: bool
    """Whether there are tools other than web search."""
    fields: dict[str, msgspec.Raw]


_body_decoder = msgspec.json.Decoder(ChatBody)
_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


def parse(body: bytes) -> ChatRequest:
    """Check a request body. Raises RequestError with ``param`` naming the field at fault."""
    given = checking.decode(_body_decoder, body)
    fields = _fields_decoder.decode(body)
    has_images = _check_messages(given.messages)
    tools = given.tools or []
    web_search_tool = _check_tools(tools) if tools else None
    choice = given.tool_choice
    if isinstance(choice, ToolChoice) and choice.type == "function" and choice.function is None:
        raise missing("tool_choice.function", 'the function to call, as `{"name": …}`')
    wanted = given.response_format
    if wanted is not None and wanted.type == "json_schema" and wanted.json_schema is None:
        raise missing("response_format.json_schema", "the schema, with its `name`")
    options = given.stream_options
    return ChatRequest(
        model=given.model,
        messages=given.messages,
        stream=bool(given.stream),
        wants_usage=options is not None and options.include_usage is True,
        max_tokens=given.max_tokens,
        max_completion_tokens=given.max_completion_tokens,
        n=given.n or 1,
        user=given.user,
        tools=tools,
        reasoning_effort=given.reasoning_effort,
        reasoning=given.reasoning,
        thinking=given.thinking,
        web_search=web_search_tool is not None or given.web_search_enabled is True,
        web_search_tool=web_search_tool,
        free_models_only=given.free_models_only is True,
        has_images=has_images,
        has_tools=bool(given.functions) or any(not is_web_search(tool.type) for tool in tools),
        fields=fields,
    )


def is_web_search(tool_type: str) -> bool:
    """Whether a tool of this type is web search, in OpenAI's or Anthropic's name, dated or not."""
    return tool_type.startswith("web_search")


def encode_fields(fields: Mapping[str, Any]) -> bytes:
    """A body of these fields; ``msgspec.Raw`` values go out as they came."""
    return msgspec.json.encode(fields)


def _check_messages(messages: list[Message]) -> bool:
    """Check what a message's role and a part's type ask for. Says whether there are images."""
    has_images = False
    for number, message in enumerate(messages):
        content = message.content
        if content is None:
            _check_silent(message, f"messages[{number}]")
        elif not isinstance(content, str):
            for place, part in enumerate(content):
                kind = part.type
                if kind in _PART_FIELDS and getattr(part, kind) is None:
                    raise missing(f"messages[{number}].content[{place}].{kind}", _PART_FIELDS[kind])
                has_images = has_images or kind == "image_url"
        if message.role == "tool" and message.tool_call_id is None:
            raise missing(
                f"messages[{number}].tool_call_id", "the `id` of the call that this answers"
            )
        for place, call in enumerate(message.tool_calls or ()):
            if call.function is None and call.type in (None, "function"):
                raise missing(
                    f"messages[{number}].tool_calls[{place}].function", "its name and arguments"
                )
    return has_images


_PART_FIELDS = {
    "text": "the text of this part",
    "image_url": 'the image, as `{"url": …}`',
    "input_audio": "the sound, as `data` and `format`",
    "file": "the file, as `file_id` or `file_data`",
    "refusal": "the words of the refusal",
}


def _check_silent(message: Message, where: str) -> None:
    """A message without content: an assistant's that says it otherwise, or a function's."""
    if message.role == "function":
        return
    if message.role != "assistant":
        raise missing(f"{where}.content", "a string or a list of parts")
    if not (message.tool_calls or message.function_call or message.refusal or message.audio):
        raise missing(f"{where}.content", "it may be null only beside `tool_calls`")


def _check_tools(tools: list[Tool]) -> str | None:
    """Check the tools; gives the type of the one that searches the web."""
    search = None
    for number, tool in enumerate(tools):
        if tool.type == "function":
            if tool.function is None:
                raise missing(f"tools[{number}].function", "its name and parameters")
        elif is_web_search(tool.type):
            search = tool.type
    return search
