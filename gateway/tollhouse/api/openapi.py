"""The OpenAPI 3.1 document of the callers' port, made from the types that check requests.

``OPERATIONS`` says what each endpoint takes and gives; a test holds it against the endpoints that
are served. Types of answers document what callers may rely on: more fields may come.

Source of the format: https://spec.openapis.org/oas/v3.1.1.html
"""

from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from tollhouse import __version__
from tollhouse.api.chat import ChatBody, ModelName
from tollhouse.api.responses import ResponsesBody
from tollhouse.errors import KINDS
from tollhouse.snapshot import Pricing

JSON = "application/json"
EVENTS = "text/event-stream"
FORM = "multipart/form-data"
_PROVIDER_STATUSES = frozenset({422})
"""What a provider that blames the request may say beside the table's own: see ``failures``."""


class CalledTool(msgspec.Struct):
    """A call that the model asks for."""

    id: str
    type: str
    function: dict[str, Any] | None = None


class AnswerMessage(msgspec.Struct):
    """What the model said."""

    role: str
    content: str | None = None
    tool_calls: list[CalledTool] | None = None


class Choice(msgspec.Struct):
    """One of the ``n`` answers."""

    index: int
    message: AnswerMessage
    finish_reason: str | None = None


class TokenUsage(msgspec.Struct):
    """Tokens, as the provider counted them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletion(msgspec.Struct):
    """A whole chat completion, as the provider sent it."""

    id: str
    object: str
    created: int
    model: str
    choices: list[Choice]
    usage: TokenUsage | None = None


class Abilities(msgspec.Struct):
    """What a model can do; null where nobody says."""

    vision: bool | None
    tools: bool | None
    reasoning: bool | None
    web_search: bool | None


class Model(msgspec.Struct):
    """A model that this key may call. Null is unknown; `context_window` is in tokens."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    pricing: Pricing | None
    context_window: int | None
    capabilities: Abilities


class ModelList(msgspec.Struct):
    """The models that this key may call."""

    object: Literal["list"]
    data: list[Model]


class PassedBody(msgspec.Struct):
    """A request of which the gateway reads ``model``; every other field is the provider's."""

    model: ModelName


class ModerationBody(msgspec.Struct):
    """What is to be judged; every field but ``model`` is the provider's."""

    model: ModelName | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One endpoint. ``takes`` is the type of its body, which is JSON unless it is a ``form``;
    ``gives`` is the type of each 200 by media type (None: described by its media type alone);
    ``public`` says that it asks for no key.
    """

    method: str
    id: str
    summary: str
    gives: dict[str, Any]
    takes: Any = None
    form: bool = False
    public: bool = False


def _passed(name: str, summary: str, *also: str, form: bool = False) -> Operation:
    """An endpoint whose bodies pass through; ``also`` are media types beside JSON."""
    return Operation(
        method="POST",
        id=name,
        summary=summary,
        takes=PassedBody,
        form=form,
        gives={JSON: dict[str, Any], **dict.fromkeys(also)},
    )


OPERATIONS: dict[str, Operation] = {
    "/v1/chat/completions": Operation(
        method="POST",
        id="createChatCompletion",
        summary="Answer a conversation, whole or as a stream of events.",
        takes=ChatBody,
        gives={JSON: ChatCompletion, EVENTS: None},
    ),
    "/v1/responses": Operation(
        method="POST",
        id="createResponse",
        summary="Answer by OpenAI's responses, whole or as a stream of events.",
        takes=ResponsesBody,
        gives={JSON: dict[str, Any], EVENTS: None},
    ),
    "/v1/embeddings": _passed("createEmbedding", "Turn text into vectors."),
    "/v1/completions": _passed("createCompletion", "Continue a text.", EVENTS),
    "/v1/moderations": Operation(
        method="POST",
        id="createModeration",
        summary="Judge text or images.",
        takes=ModerationBody,
        gives={JSON: dict[str, Any]},
    ),
    "/v1/rerank": _passed("createRerank", "Order documents by how well they fit a query."),
    "/v1/images/generations": _passed("createImage", "Make images.", EVENTS),
    "/v1/images/edits": _passed("createImageEdit", "Change images.", EVENTS, form=True),
    "/v1/images/variations": _passed("createImageVariation", "Vary an image.", form=True),
    "/v1/audio/speech": _passed("createSpeech", "Speak a text.", "audio/*", EVENTS),
    "/v1/audio/transcriptions": _passed(
        "createTranscription", "Write down what is said.", "text/plain", EVENTS, form=True
    ),
    "/v1/audio/translations": _passed(
        "createTranslation", "Write down in English what is said.", "text/plain", form=True
    ),
    "/v1/models": Operation(
        method="GET",
        id="listModels",
        summary="List the models that this key may call.",
        gives={JSON: ModelList},
    ),
    "/v1/models/{id}": Operation(
        method="GET",
        id="getModel",
        summary="Describe one model, by any name that this key may use; it may have slashes.",
        gives={JSON: Model},
    ),
    "/v1/key": Operation(
        method="GET",
        id="getKey",
        summary="Say what the key of this request is and may do.",
        gives={JSON: dict[str, Any]},
    ),
    "/api/models": Operation(
        method="GET",
        id="listPublicModels",
        summary="List the models that are shared with every namespace, by provider.",
        gives={JSON: dict[str, Any]},
        public=True,
    ),
    "/openapi.json": Operation(
        method="GET",
        id="getOpenAPI",
        summary="Give this document.",
        gives={JSON: dict[str, Any]},
        public=True,
    ),
}
"""Every endpoint by its path; ``{name}`` in a path stands for a parameter."""


def document() -> dict[str, Any]:
    """The whole document as plain data, the same for every process of one version."""
    types = [
        type_
        for operation in OPERATIONS.values()
        for type_ in (operation.takes, *operation.gives.values())
        if type_ is not None
    ]
    schemas, components = msgspec.json.schema_components(
        types, ref_template="#/components/schemas/{name}"
    )
    schema_of = dict(zip(map(id, types), schemas, strict=True))
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "Tollhouse",
            "version": __version__,
            "description": "An LLM gateway with OpenAI's API in front of any provider.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}, {"xApiKey": []}, {"apiKey": []}],
        "paths": {
            path: {operation.method.lower(): _operation(path, operation, schema_of)}
            for path, operation in OPERATIONS.items()
        },
        "components": {
            "schemas": {**components, "Error": _ERROR},
            "responses": _refusals(),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "xApiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "api-key"},
            },
        },
    }


def encode() -> bytes:
    """The document as it is served, and as ``docs/openapi.json`` holds it."""
    return msgspec.json.format(msgspec.json.encode(document()), indent=2) + b"\n"


_ERROR = {
    "title": "Error",
    "description": "Every failure, on every path. `message` says what to do next.",
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"enum": sorted({kind.type for kind in KINDS.values()})},
                "param": {"type": ["string", "null"]},
                "code": {"enum": sorted(KINDS)},
                "metadata": {"type": "object"},
            },
        }
    },
}


def _operation(path: str, operation: Operation, schema_of: dict[int, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {"operationId": operation.id, "summary": operation.summary}
    if operation.public:
        result["security"] = []
    names = [piece[1:-1] for piece in path.split("/") if piece.startswith("{")]
    if names:
        result["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ]
    if operation.takes is not None:
        result["requestBody"] = {
            "required": True,
            "content": {
                FORM if operation.form else JSON: {"schema": schema_of[id(operation.takes)]}
            },
        }
    content = {
        media: {} if type_ is None else {"schema": schema_of[id(type_)]}
        for media, type_ in operation.gives.items()
    }
    result["responses"] = {
        "200": {"description": "The answer.", "content": content},
        **{name: {"$ref": f"#/components/responses/{name}"} for name in _refusals()},
    }
    return result


def _refusals() -> dict[str, Any]:
    """Every status that is an error, with the codes that go with it."""
    codes: dict[int, list[str]] = {status: ["provider_rejected"] for status in _PROVIDER_STATUSES}
    for code, kind in KINDS.items():
        codes.setdefault(kind.status, []).append(code)
    return {
        str(status): {
            "description": f"One of: {', '.join(codes[status])}.",
            "content": {JSON: {"schema": {"$ref": "#/components/schemas/Error"}}},
        }
        for status in sorted(codes)
    }
