"""Strict shapes beside the OpenAI SDK's own models: not a field more, not a field less."""

import typing
from collections.abc import Iterator
from typing import Any

import openai.types as t
import pytest
from openai.types import audio, responses
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from tollhouse.api import shape

Model = type[BaseModel]


def models(annotation: Any) -> list[Model]:
    """The models that an annotation mentions, through lists, unions and aliases."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    annotation = getattr(annotation, "__value__", annotation)
    inner = [it for it in typing.get_args(annotation) if not isinstance(it, str)]
    return [model for it in inner for model in models(it)]


def kind_of(model: Model) -> str:
    return str(typing.get_args(model.model_fields["type"].annotation)[0])


def fields(model: Model) -> dict[str, Any]:
    return {field.alias or name: field.annotation for name, field in model.model_fields.items()}


def differences(cut: shape.Shape, those: list[Model], where: str = "") -> Iterator[str]:
    """Each field that only one of the two has, and each type that no model has."""
    if isinstance(cut, shape.ByType):
        known = {kind_of(model): model for model in those}
        yield from (f"{where}[{kind}]" for kind in cut.keys() - known.keys())
        for kind in cut.keys() & known.keys():
            yield from differences(cut[kind], [known[kind]], f"{where}[{kind}]")
        return
    names = {name for model in those for name in fields(model)}
    yield from (f"{where}.{name}" for name in names ^ cut.keys())
    for name in names & cut.keys():
        if cut[name] is not None:
            inner = [it for model in those for it in models(fields(model).get(name))]
            yield from differences(cut[name], inner, f"{where}.{name}")


@pytest.mark.parametrize(
    ("cut", "those"),
    [
        (shape.RESPONSE, [responses.Response]),
        (shape.RESPONSE_EVENTS, models(responses.ResponseStreamEvent)),
        (shape.ITEM, models(responses.ResponseOutputItem)),
        (shape.COMPLETION, [t.Completion]),
        (shape.EMBEDDINGS, [t.CreateEmbeddingResponse]),
        (shape.MODERATION, [t.ModerationCreateResponse]),
        (shape.IMAGES, [t.ImagesResponse]),
        (
            shape.TRANSCRIPTION,
            [audio.Transcription, audio.TranscriptionVerbose, audio.TranscriptionDiarized],
        ),
        (shape.TRANSLATION, [audio.Translation, audio.TranslationVerbose]),
    ],
    ids=[
        *("response", "response-events", "items", "completion", "embeddings", "moderation"),
        *("images", "transcription", "translation"),
    ],
)
def test_a_shape_is_that_of_the_sdk(cut: shape.Shape, those: list[Model]) -> None:
    assert sorted(differences(cut, those)) == []


def test_the_events_of_images_and_audio_are_the_sdks() -> None:
    those: list[Model] = [
        *(t.ImageGenCompletedEvent, t.ImageGenPartialImageEvent),
        *(t.ImageEditCompletedEvent, t.ImageEditPartialImageEvent),
        *(audio.TranscriptionTextDeltaEvent, audio.TranscriptionTextDoneEvent),
        audio.TranscriptionTextSegmentEvent,
    ]
    # The SDK has no model for the events of speech.
    unknown = ["[speech.audio.delta]", "[speech.audio.done]"]
    assert sorted(differences(shape.EVENTS, those)) == unknown


def test_chats_shape_has_no_field_that_the_sdk_has_not() -> None:
    # Padding against who counts bytes, and what OpenAI says of answers that it stores.
    left_out = [".metadata", ".moderation", ".obfuscation"]
    assert sorted(differences(shape.CHAT, [ChatCompletion, ChatCompletionChunk])) == left_out


def test_a_type_that_is_not_known_is_kept_whole() -> None:
    output = [{"type": "new_call", "x": 1}, {"type": "refusal", "x": 1}, {"type": 7, "x": 1}]
    kept = shape.only(shape.RESPONSE, {"output": output, "x": 1})
    assert kept == {"output": output}
    part = {"type": "refusal", "refusal": "no", "x": 1}
    item = {"type": "message", "content": [part], "x": 1}
    assert shape.only(shape.ITEM, item) == {
        "type": "message",
        "content": [{"type": "refusal", "refusal": "no"}],
    }
