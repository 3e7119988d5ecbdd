"""Multipart forms on their way through: where the ``model`` field's value stands in the bytes.

Source of the format: RFC 7578 and RFC 2046, section 5.1. The form is never taken apart and put
together again: it passes in its own bytes, and only the value of ``model`` is replaced. What one
parser could read in another way than the next (two ``model`` fields, a part without a name, a
boundary after a bare line feed) is refused, so that no provider sees another model than we routed.
"""

import re

from tollhouse.api import passthrough
from tollhouse.errors import RequestError

MAX_MODEL_BYTES = 1024
MAX_PARTS = 256
_MAX_HEADER_BYTES = 16 * 1024
_BOUNDARY = re.compile(r';\s*boundary=(?:"([^"\\\r\n]{1,70})"|([^\s;,"]{1,70}))', re.IGNORECASE)
_BOUNDARIES = re.compile(r"boundary[\s*\d]*=", re.IGNORECASE)
_DISPOSITION = re.compile(
    rb"""form-data(?P<params>(?:\s*;\s*[\w!#$%&'*+.^`|~-]+=(?:"(?:[^"\\\r\n]|\\.)*"|[^\s;"]+))*)\s*;?\s*""",
    re.IGNORECASE,
)
_PARAM = re.compile(rb""";\s*([\w!#$%&'*+.^`|~-]+)=(?:"((?:[^"\\\r\n]|\\.)*)"|([^\s;"]+))""")


def boundary_of(content_type: str) -> bytes:
    """The boundary that a ``Content-Type`` header declares. Raises RequestError without one."""
    # Two of them, or one inside of another parameter's quotes, are read in different ways.
    once = len(_BOUNDARIES.findall(content_type)) == 1
    kind = content_type.partition(";")[0].strip().lower()
    found = _BOUNDARY.search(content_type)
    if kind != "multipart/form-data" or found is None or not once:
        raise RequestError(
            "unsupported_media_type",
            "Send the body as a form, with `Content-Type: multipart/form-data; boundary=…`.",
        )
    return (found[1] or found[2]).encode()


class ModelFinder:
    """Fed a form piece by piece, it finds the ``model`` field; it keeps no more than a header.

    ``start`` and ``end`` are the value's offsets in the form, ``model`` its text.
    """

    def __init__(self, boundary: bytes) -> None:
        self.start = -1
        self.end = -1
        self._delimiter = b"\n--" + boundary
        # The first boundary has no line before it; this one makes it like all others.
        self._tail = b"\r\n"
        self._offset = -2
        self._state = self._seek_boundary
        self._in_model = False
        self._value = b""
        self._parts = 0
        self._over = False

    @property
    def model(self) -> str:
        """Raises RequestError when the form was not whole or has no usable ``model``."""
        if not self._over:
            raise _unreadable("it ends before its last boundary")
        if self.end < 0:
            raise passthrough.missing_model()
        try:
            model = self._value.decode()
        except UnicodeDecodeError:
            raise RequestError("invalid_value", "`model` is not UTF-8.", param="model") from None
        if not model:
            raise RequestError("invalid_value", "`model` is empty.", param="model")
        return model

    def feed(self, piece: bytes) -> None:
        """The form's next bytes. Raises RequestError for what is not a form."""
        if self._over:
            return
        self._tail += piece
        while self._state():
            pass

    def _consume(self, size: int) -> bytes:
        taken, self._tail = self._tail[:size], self._tail[size:]
        self._offset += size
        return taken

    def _seek_boundary(self) -> bool:
        found = self._tail.find(self._delimiter)
        if found < 0:
            # All but what may be the delimiter's beginning, and the CR before it.
            self._keep(self._consume(max(0, len(self._tail) - len(self._delimiter) - 1)))
            return False
        if found == 0 or self._tail[found - 1] != 0x0D:
            raise _unreadable("a boundary follows a bare line feed")
        self._keep(self._consume(found - 1))
        if self._in_model:
            self.end = self._offset
            self._in_model = False
        self._consume(1 + len(self._delimiter))
        self._state = self._read_boundary
        return True

    def _keep(self, content: bytes) -> None:
        if self._in_model:
            self._value += content
            if len(self._value) > MAX_MODEL_BYTES:
                raise RequestError(
                    "invalid_value",
                    f"`model` is longer than {MAX_MODEL_BYTES} bytes.",
                    param="model",
                )

    def _read_boundary(self) -> bool:
        """What follows a delimiter: the end of its line, or two hyphens at the form's end."""
        if len(self._tail) < 2:
            return False
        after = self._tail[:2]
        if after == b"--":
            self._over = True
            self._tail = b""
            return False
        if after != b"\r\n":
            raise _unreadable("a boundary does not end its line")
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise _unreadable(f"it has more than {MAX_PARTS} parts")
        # The line's end stays: a part without headers has an empty line right here.
        self._state = self._read_headers
        return True

    def _read_headers(self) -> bool:
        end = self._tail.find(b"\r\n\r\n")
        if end < 0:
            if len(self._tail) > _MAX_HEADER_BYTES:
                raise _unreadable("a part's headers are too large")
            return False
        block = self._consume(end + 4)
        if _name_of(block) == b"model":
            if self.start >= 0:
                raise RequestError(
                    "invalid_value", "Send `model` once: the form has it twice.", param="model"
                )
            self.start = self._offset
            self._in_model = True
        # A value may be empty: then the boundary's own line break is the one after the headers.
        self._state = self._seek_boundary
        return True


def _name_of(block: bytes) -> bytes:
    """The field's name that a part's headers give it."""
    dispositions = [
        value.strip()
        for name, _, value in (line.partition(b":") for line in block.split(b"\r\n"))
        if name.strip().lower() == b"content-disposition"
    ]
    if len(dispositions) != 1 or not (found := _DISPOSITION.fullmatch(dispositions[0])):
        raise _unreadable("a part has no plain `Content-Disposition: form-data; name=…`")
    params = [
        (key.lower(), re.sub(rb"\\(.)", rb"\1", quoted) or token)
        for key, quoted, token in _PARAM.findall(found["params"])
    ]
    names = [value for key, value in params if key == b"name"]
    if len(names) != 1:
        raise _unreadable("a part needs one name")
    if names[0] == b"model" and len(params) > 1:
        raise RequestError(
            "invalid_value", "Send `model` as a plain field, not as a file.", param="model"
        )
    return names[0]


def _unreadable(why: str) -> RequestError:
    return RequestError("invalid_value", f"The form cannot be read: {why}. Send it again.")
