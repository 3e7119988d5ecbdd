"""Chat requests: what is checked, what is said about a mistake, and what passes through."""

import msgspec
import pytest

from tollhouse.api import chat
from tollhouse.errors import RequestError
from tollhouse.providers import openai
from tollhouse.snapshot import Credential, Parameters, Provider

USER = '"messages":[{"role":"user","content":"hi"}]'


@pytest.mark.parametrize(
    ("body", "code", "param", "message"),
    [
        ("", "invalid_json", None, "not valid JSON"),
        ("{", "invalid_json", None, "not valid JSON"),
        ("[]", "invalid_value", None, "The body must be an object, not a list."),
        ("null", "invalid_value", None, "The body must be an object, not null."),
        ("{}", "missing_field", "model", "Send `model`"),
        ('{"model":null}', "missing_field", "model", "Send `model`"),
        ('{"model":""}', "invalid_value", "model", "is empty"),
        ('{"model":1}', "invalid_value", "model", "`model` must be a string, not an integer."),
        ('{"model":"m"}', "missing_field", "messages", "Send `messages`"),
        ('{"model":"m","messages":[]}', "invalid_value", "messages", "at least one"),
        ('{"model":"m","messages":"x"}', "invalid_value", "messages", "must be a list"),
        ('{"model":"m","messages":[1]}', "invalid_value", "messages[0]", "must be an object"),
        ('{"model":"m","messages":[{}]}', "missing_field", "messages[0].role", "Send"),
        (f'{{"model":"m",{USER},"stream":1}}', "invalid_value", "stream", "true or false"),
        (f'{{"model":"m",{USER},"max_tokens":0}}', "invalid_value", "max_tokens", "at least 1"),
        (f'{{"model":"m",{USER},"max_tokens":"9"}}', "invalid_value", "max_tokens", "an integer"),
        ('{"a":' * 5000, "invalid_json", None, "nested too deeply"),
    ],
)
def test_a_mistake_is_named(body: str, code: str, param: str | None, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        chat.parse(body.encode())
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, code, param)
    assert message in caught.value.message


def test_invalid_utf8_is_no_json() -> None:
    with pytest.raises(RequestError, match="not valid UTF-8"):
        chat.parse(b'{"model":"m","messages":[{"role":"user","content":"\xff"}]}')


def test_null_is_the_same_as_absent() -> None:
    body = f'{{"model":"m",{USER},"stream":null,"max_tokens":null,"stream_options":null}}'
    request = chat.parse(body.encode())
    assert (request.stream, request.max_tokens, request.wants_usage) == (False, None, False)


PROVIDER = Provider("ai", "p", "OpenAI", "https://llm.example/v1", Credential("sk-PLANTED"))


def sent(
    body: str,
    *,
    model: str = "m",
    cap: int | None = None,
    parameters: Parameters | None = None,
    provider: Provider = PROVIDER,
) -> bytes:
    request = chat.parse(body.encode())
    _, result = openai.chat_request(
        request, provider=provider, model=model, cap=cap, parameters=parameters or Parameters()
    )
    return result


def test_fields_reach_the_provider_in_the_bytes_they_came_in() -> None:
    odd = '"temperature":1.0,"big":12345678901234567890123,"new":{"x": [1 ,2]}'
    body = f'{{"model":"m",{USER},{odd}}}'
    assert sent(body) == body.encode()


def test_only_the_model_is_replaced() -> None:
    body = f'{{"temperature":0.10,"model":"alias",{USER}}}'
    assert sent(body, model="gpt-x") == body.replace('"alias"', '"gpt-x"').encode()


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("", {"max_tokens": 100}),
        (',"max_tokens":50', {"max_tokens": 50}),
        (',"max_tokens":500', {"max_tokens": 100}),
        (',"max_completion_tokens":500', {"max_completion_tokens": 100}),
        (',"max_tokens":null', {"max_tokens": 100}),
    ],
)
def test_a_cap_clamps_or_is_put_in(asked: str, expected: dict[str, int]) -> None:
    body = msgspec.json.decode(sent(f'{{"model":"m",{USER}{asked}}}', cap=100))
    assert {k: v for k, v in body.items() if k.startswith("max_")} == expected


def test_openai_itself_gets_the_field_that_its_reasoning_models_take() -> None:
    own = Provider("ai", "openai", "OpenAI", "https://api.openai.com/v1")
    body = msgspec.json.decode(sent(f'{{"model":"m",{USER}}}', cap=100, provider=own))
    assert body["max_completion_tokens"] == 100
    assert "max_tokens" not in body


def test_the_routes_parameters_fill_in_and_override() -> None:
    parameters = Parameters(defaults={"temperature": 0.2, "top_p": 0.9}, overrides={"seed": 1})
    body = msgspec.json.decode(
        sent(
            f'{{"model":"m",{USER},"top_p":0.5,"temperature":null,"seed":9}}', parameters=parameters
        )
    )
    assert (body["temperature"], body["top_p"], body["seed"]) == (0.2, 0.5, 1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", {"include_usage": True}),
        (',"stream_options":null', {"include_usage": True}),
        (
            ',"stream_options":{"include_usage":false,"include_obfuscation":false}',
            {"include_usage": True, "include_obfuscation": False},
        ),
        (',"stream_options":{"include_usage":true}', {"include_usage": True}),
    ],
)
def test_usage_is_always_asked_of_a_stream(options: str, expected: dict[str, bool]) -> None:
    body = msgspec.json.decode(sent(f'{{"model":"m",{USER},"stream":true{options}}}'))
    assert body["stream_options"] == expected


def test_the_credential_goes_into_a_header_and_nowhere_else() -> None:
    assert openai.headers(PROVIDER)["Authorization"] == "Bearer sk-PLANTED"
    assert "PLANTED" not in repr(PROVIDER)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":{"message":"m","code":"c"}}', "m"),
        (b'{"error":"m"}', "m"),
        (b'{"message":"m"}', "m"),
        (b"[]", None),
        (b"<html>", None),
        (b'{"error":{"message":1}}', None),
        (b"\xff", None),
    ],
)
def test_a_providers_error_is_read_in_every_form(body: bytes, message: str | None) -> None:
    assert openai.error_of(body).get("message") == message
