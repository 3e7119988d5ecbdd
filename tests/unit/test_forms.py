"""Where ``model`` stands in a form, however the form is cut on its way; and what is refused."""

import contextlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.api import forms
from tollhouse.errors import RequestError

FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n\r\n--\r\n--c\r\n'
MODEL = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n'
END = b"--b--\r\n"
DISPOSED = b"Content-Disposition: form-data; "
FORMS = [MODEL + FILE + END, FILE + MODEL + END, FILE + MODEL + FILE + END]


def found(form: bytes, *cuts: int) -> forms.ModelFinder:
    finder = forms.ModelFinder(b"b")
    edges = [0, *sorted(cuts), len(form)]
    for start, end in pairwise(edges):
        finder.feed(form[start:end])
    return finder


@pytest.mark.parametrize("form", FORMS)
@given(data=st.data())
def test_the_value_is_found_wherever_the_form_is_cut(form: bytes, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(form)), max_size=8))
    finder = found(form, *cuts)
    assert finder.model == "whisper-1"
    assert form[finder.start : finder.end] == b"whisper-1"


@pytest.mark.parametrize("form", FORMS)
def test_the_value_is_found_byte_by_byte(form: bytes) -> None:
    finder = found(form, *range(len(form)))
    assert form[finder.start : finder.end] == b"whisper-1"


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    for form in (content, b"--b\r\n" + content, MODEL + b"--b\r\n" + content):
        finder = forms.ModelFinder(b"b")
        # Nothing but a RequestError may come out of it.
        with contextlib.suppress(RequestError):
            finder.feed(form)
            assert finder.model


def part(headers: bytes, value: bytes = b"x") -> bytes:
    return b"--b\r\n" + headers + b"\r\n\r\n" + value + b"\r\n"


@pytest.mark.parametrize(
    ("form", "code"),
    [
        (FILE + END, "missing_field"),
        (MODEL + MODEL + END, "invalid_value"),
        (part(b"Content-Disposition: form-data; name=model", b"") + END, "invalid_value"),
        (part(b"Content-Disposition: form-data; name=model", b"x" * 2000) + END, "invalid_value"),
        (part(b"Content-Disposition: form-data; name=model", b"\xff") + END, "invalid_value"),
        (
            part(DISPOSED + b'name="model"; filename="m"') + END,
            "invalid_value",
        ),
        (part(b'Content-Disposition: form-data; name="a"; name="model"') + END, "invalid_value"),
        (part(b"Content-Type: text/plain") + END, "invalid_value"),
        (part(b"") + END, "invalid_value"),
        (MODEL, "invalid_value"),
        (b"", "invalid_value"),
        (MODEL + b"--b\n" + END, "invalid_value"),
        (b'--b\r\nContent-Disposition: form-data; name="f"\r\n\r\nx\n--b\r\n', "invalid_value"),
        (part(b'Content-Disposition: form-data; name="f"') * 300 + END, "invalid_value"),
        (b"--b\r\n" + b"x" * 20_000, "invalid_value"),
    ],
    ids=[
        "no model",
        "two models",
        "empty",
        "too long",
        "not UTF-8",
        "a file",
        "two names",
        "no name",
        "no headers",
        "cut short",
        "nothing",
        "boundary with a bare line feed",
        "boundary after a bare line feed",
        "too many parts",
        "endless headers",
    ],
)
def test_a_form_that_could_be_read_in_two_ways_is_refused(form: bytes, code: str) -> None:
    with pytest.raises(RequestError) as caught:
        assert found(form).model
    assert (caught.value.status, caught.value.code) == (400, code)


def test_names_are_read_as_servers_read_them() -> None:
    for name in (b'name="model"', b"name=model", b'NAME="model"', b'name="mod\\el"'):
        form = part(b"content-disposition:form-data;" + name, b"m") + END
        assert found(form).model == "m"


@pytest.mark.parametrize(
    ("header", "boundary"),
    [
        ("multipart/form-data; boundary=abc", b"abc"),
        ('Multipart/Form-Data; charset=utf-8; Boundary="a b"', b"a b"),
        ("multipart/form-data; boundary=--WebKitFormBoundary7", b"--WebKitFormBoundary7"),
        ("multipart/form-data; boundary=a; boundary=b", None),
        ('multipart/form-data; x="; boundary=a"; boundary=b', None),
        ("multipart/form-data; boundary=a; boundary*0=b", None),
        ("multipart/form-data", None),
        ("multipart/mixed; boundary=abc", None),
        ("application/json", None),
        ("", None),
    ],
)
def test_the_boundary_of_a_content_type(header: str, boundary: bytes | None) -> None:
    if boundary is not None:
        assert forms.boundary_of(header) == boundary
        return
    with pytest.raises(RequestError) as caught:
        forms.boundary_of(header)
    assert caught.value.status == 415
