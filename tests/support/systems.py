"""The five systems whose callers must be able to switch: what their documents let callers send.

Source: the systems' own pages for ``POST /v1/chat/completions``; each request is as it stands
there, or the smallest one that uses a field of their tables.
"""

from dataclasses import dataclass
from typing import Any

HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}},
}
CAT = {
    "role": "user",
    "content": [
        {"type": "text", "text": "What's in this image?"},
        {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}},
    ],
}
TOOL_HISTORY = [
    {"role": "user", "content": "How warm is it?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_abc",
                "type": "function",
                "function": {"name": "get_weather", "arguments": "{}"},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_abc", "content": '{"temp": 22}'},
]


@dataclass(frozen=True)
class Example:
    """One documented request: its body, and what the Mock provider, which echoes, answers."""

    system: str
    name: str
    body: dict[str, Any]
    said: str = "Hello"

    def __str__(self) -> str:
        return f"{self.system}-{self.name}"


def _llmtr(name: str, said: str = "Hello", **fields: Any) -> Example:
    return Example(
        "llmtr", name, {"model": "openai/gpt-4o", "messages": HELLO, **fields}, said=said
    )


def _proxy(name: str, said: str = "Hello", **fields: Any) -> Example:
    return Example("llm-proxy", name, {"model": "gpt-4o", "messages": HELLO, **fields}, said=said)


def _tensorloop(name: str, said: str = "Hello", **fields: Any) -> Example:
    body = {"model": "gpt-4o-mini", "messages": HELLO, **fields}
    return Example("tensorloop", name, body, said=said)


def _llmgateway(name: str, **fields: Any) -> Example:
    return Example("llm-gateway", name, {"model": "gpt-5", "messages": HELLO, **fields}, "Hello!")


EXAMPLES = (
    _llmtr(
        "curl",
        "What is LLMTR?",
        messages=[
            {"role": "system", "content": "You are a concise assistant."},
            {"role": "user", "content": "What is LLMTR?"},
        ],
        temperature=0.3,
        max_tokens=200,
    ),
    _llmtr("sampling", top_p=0.9, frequency_penalty=-2, presence_penalty=2),
    _llmtr("stop", stop="END"),
    _llmtr("stops", stop=["END", "STOP"]),
    _llmtr("json", response_format={"type": "json_object"}),
    _llmtr("tools", tools=[TOOL], tool_choice="none"),
    _llmtr("named-tool", tools=[TOOL], tool_choice={"type": "function", "function": {"name": "x"}}),
    _llmtr("provider-field", provider_option={"deep": [1, None]}),
    Example("llmtr-endpoint", "curl", {"model": "xai/grok-4", "messages": HELLO}),
    _llmgateway("curl", messages=[{"role": "user", "content": "Hello!"}]),
    _llmgateway(
        "nulls",
        messages=[{"role": "user", "content": "Hello!"}],
        temperature=None,
        max_tokens=None,
        top_p=None,
        frequency_penalty=None,
        presence_penalty=None,
        reasoning_effort=None,
    ),
    _proxy(
        "curl",
        "What is RAG?",
        messages=[
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "What is RAG?"},
        ],
        max_tokens=512,
    ),
    _proxy("user", user="someone"),
    _proxy("alias", model="fast"),
    _tensorloop("curl"),
    _tensorloop("fields", seed=7, logprobs=True, top_logprobs=2, user="someone"),
    _tensorloop("tool-choice", tools=[TOOL], tool_choice="required"),
    _tensorloop("image", "What's in this image?", messages=[CAT]),
    _tensorloop("tool-result", "How warm is it?", messages=TOOL_HISTORY),
)
