"""Decoding what callers send, and what is said about a mistake in it: the same on every path."""

import re
from typing import TypeVar

import msgspec

from tollhouse.errors import RequestError

T = TypeVar("T")

IMAGE_URL = "^([Hh][Tt][Tt][Pp][Ss]?://.|[Dd][Aa][Tt][Aa]:[^,]*,)"
"""The pattern of what an image may be given as."""
_FORMS = {IMAGE_URL: "an https: URL or a data: URI"}


class AnyObject(msgspec.Struct):
    """An object whose fields are the provider's business."""


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """A body by this decoder. Raises RequestError with ``param`` naming the field at fault."""
    try:
        if not body.isascii():
            # msgspec reads only the text that it keeps; nothing else may reach a provider either.
            body.decode()
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _mistake(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError("invalid_json", _why_not_json(error)) from None


def invalid(param: str, message: str) -> RequestError:
    """The refusal of a value; ``message`` goes on from the field's name."""
    return RequestError("invalid_value", f"`{param}` {message}", param=param)


def missing(param: str, what: str) -> RequestError:
    """The refusal of a request without this field; ``what`` says what belongs there."""
    return RequestError("missing_field", f"Send `{param}`: {what}.", param=param)


_WORDS = {
    "str": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}
_ABSENT = re.compile(r"Object missing required field `(?P<name>[^`]+)`")
_TYPES = re.compile(r"Expected `(?P<want>[^`]+)`, got `(?P<got>[^`]+)`")
_BOUND = re.compile(r"Expected `(?:int|float)` (?P<sign>[<>]=) (?P<bound>-?[\d.]+)")
_LENGTH = re.compile(r"Expected `(?P<type>str|array)` of length (?P<sign>[<>]=) (?P<bound>\d+)")
_FORM = re.compile(r"Expected `str` matching regex '(?P<pattern>.*)'", re.DOTALL)
_WORD = re.compile(r"Invalid enum value (?P<value>.*)", re.DOTALL)
_MOST_SHOWN = 60
"""Characters of a caller's own value that are repeated to it."""


def _mistake(error: msgspec.ValidationError) -> RequestError:
    text, _, path = str(error).rpartition(" - at `$")
    if not text:
        text, path = str(error), ""
    param = path.rstrip("`").lstrip(".")
    if absent := _ABSENT.match(text):
        return _absent(f"{param}.{absent['name']}" if param else absent["name"])
    if types := _TYPES.match(text):
        if types["got"] == "null" and param and not param.endswith("]"):
            return _absent(param)
        wanted = [word for word in types["want"].split(" | ") if word != "null"]
        want = " or ".join(_WORDS.get(word, word) for word in wanted)
        got = _WORDS.get(types["got"], types["got"])
        said = f"must be {want}, not {got}."
    elif bound := _BOUND.match(text):
        limit = f"{float(bound['bound']):g}"
        said = f"must be at {'most' if bound['sign'] == '<=' else 'least'} {limit}."
    elif length := _LENGTH.match(text):
        said = _length(length["type"], length["sign"], length["bound"])
    elif form := _FORM.match(text):
        said = f"must be {_FORMS[form['pattern']]}."
    elif word := _WORD.match(text):
        said = f"cannot be {word['value'][:_MOST_SHOWN]}; the API reference lists what it can be."
    else:
        said = f"is not valid: {text[:_MOST_SHOWN]}."
    if not param:
        return RequestError("invalid_value", f"The body {said}")
    return invalid(param, said)


def _absent(param: str) -> RequestError:
    return RequestError(
        "missing_field", f"Send `{param}`: it is required and cannot be null.", param=param
    )


def _length(kind: str, sign: str, bound: str) -> str:
    if sign == ">=" and bound == "1":
        return "is empty." if kind == "str" else "must hold at least one entry."
    limit = f"at {'most' if sign == '<=' else 'least'} {bound}"
    return f"must have {limit} {'characters' if kind == 'str' else 'entries'}."


def _why_not_json(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "The body is nested too deeply."
    if isinstance(error, UnicodeDecodeError):
        return "The body is not valid UTF-8."
    return f"The body is not valid JSON: {error}."
