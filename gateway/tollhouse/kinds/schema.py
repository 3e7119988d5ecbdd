"""What the resource models are made of: strict fields, rules, lists that merge, plain problems.

Rules are written once and checked twice: in Python, when a manifest is parsed, and by the API
server, as ``x-kubernetes-validations``. Both say the same message. This module knows no kind.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel
from pydantic.annotated_handlers import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a manifest: where, from its root, and what to do about it."""

    path: tuple[str | int, ...]
    message: str

    def __str__(self) -> str:
        return f"{dotted(self.path)}: {self.message}" if self.path else self.message


def dotted(path: tuple[str | int, ...]) -> str:
    """A path as people write it: ``spec.targets[0].provider``."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return "".join(steps).removeprefix(".")


@dataclass(frozen=True, slots=True)
class Rule:
    """A promise that types cannot express, in CEL and in Python.

    On a model (``rules``) ``holds`` gets the model; in ``Annotated`` it gets the value. ``field``
    is the field to point at. ``pattern`` goes into the schema beside the rule, for editors; a rule
    whose ``cel`` is empty is one that CEL cannot check, so only Python does.
    """

    cel: str
    message: str
    holds: Callable[[Any], bool]
    field: str | None = None
    pattern: str | None = None

    def kubernetes(self) -> dict[str, str]:
        """The rule as an entry of ``x-kubernetes-validations``."""
        entry = {"rule": self.cel, "message": self.message}
        return entry | ({"fieldPath": f".{self.field}"} if self.field else {})

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        result = handler(schema)
        if self.pattern:
            result["pattern"] = self.pattern
        if self.cel:
            result.setdefault("x-kubernetes-validations", []).append(self.kubernetes())
        return result

    def _check(self, value: Any) -> Any:
        if not self.holds(value):
            raise _broken((self,))
        return value


@dataclass(frozen=True, slots=True)
class Merging:
    """A list that server-side apply merges: by ``keys``, or by value when there are none.

    In ``Annotated`` it stands after the list's bounds, or pydantic leaves them out of the schema.
    """

    keys: tuple[str, ...] = ()

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        result = handler(schema)
        result["x-kubernetes-list-type"] = "map" if self.keys else "set"
        if self.keys:
            result["x-kubernetes-list-map-keys"] = list(self.keys)
        return result

    def _check(self, items: tuple[Any, ...]) -> tuple[Any, ...]:
        seen: set[Any] = set()
        for item in items:
            identity = tuple(getattr(item, key) for key in self.keys) if self.keys else item
            if identity in seen:
                what = f"the same {' and '.join(self.keys)}" if self.keys else "the same value"
                raise PydanticCustomError("duplicate", "two entries have {what}", {"what": what})
            seen.add(identity)
        return items


class Model(BaseModel):
    """A frozen object of a manifest; fields are snake_case here and camelCase in YAML."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        strict=True,
    )
    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _keep_rules(self) -> Self:
        broken = tuple(rule for rule in self.rules if not rule.holds(self))
        if broken:
            raise _broken(broken)
        return self

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        result = handler.resolve_ref_schema(handler(schema))
        entries = [rule.kubernetes() for rule in cls.rules if rule.cel]
        if entries:
            result["x-kubernetes-validations"] = entries
        return result


def _broken(rules: tuple[Rule, ...]) -> PydanticCustomError:
    found = [(rule.field, rule.message) for rule in rules]
    return PydanticCustomError("broken_rules", "broken rules", {"found": found})


def says(description: str, **constraints: Any) -> Any:
    """A field's description, which ``kubectl explain`` shows, and its bounds."""
    return Field(description=description, **constraints)


def matching(pattern: str, message: str, also: str = "") -> Rule:
    """A rule for strings: ``pattern`` matches (RE2 and ``re`` alike), and ``also`` where given."""
    # RE2's \s is ASCII and its $ only the very end.
    compiled = [
        re.compile(regex.replace("$", r"\Z"), re.ASCII) for regex in (pattern, also) if regex
    ]
    return Rule(
        cel=" && ".join(f"self.matches({cel_string(regex)})" for regex in (pattern, also) if regex),
        message=message,
        holds=lambda value: all(regex.search(value) for regex in compiled),
        pattern=pattern,
    )


def cel_string(text: str) -> str:
    """``text`` as a CEL string literal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def problems(error: ValidationError, model: type[BaseModel]) -> Iterator[Problem]:
    """What pydantic found, in the words of whoever wrote the manifest. Values are never shown."""
    details = error.errors(include_url=False, include_input=False)
    paths = [tuple(step for step in detail["loc"] if step != "[key]") for detail in details]
    for detail, path in zip(details, paths, strict=True):
        context = detail.get("ctx", {})
        if detail["type"] == "broken_rules":
            for field, message in context["found"]:
                yield Problem((*path, field) if field else path, message)
        elif detail["type"] == "extra_forbidden":
            yield Problem(path, unknown(str(path[-1]), _fields_at(model, path[:-1])))
        elif detail["type"] == "too_short" and any(
            len(other) > len(path) and other[: len(path)] == path for other in paths
        ):
            continue  # pydantic counts the valid entries alone; the others have their own problems
        else:
            message = _MESSAGES.get(detail["type"], detail["msg"])
            yield Problem(path, message.format_map(_Listed(context)))


_MESSAGES = {
    "missing": "is required",
    "string_type": "must be a string; put numbers and true or false in quotes",
    "int_type": "must be a whole number, without quotes",
    "bool_type": "must be true or false, without quotes",
    "float_type": "must be a number, without quotes",
    "tuple_type": "must be a list",
    "dict_type": "must be a map of names to values",
    "model_type": "must be a map of fields",
    "literal_error": "must be one of {expected}",
    "greater_than_equal": "must be {ge} or more",
    "less_than_equal": "must be {le} or less",
    "string_too_long": "must be at most {max_length} characters long",
    "string_too_short": "must not be empty",
    "too_long": "must have at most {max_length} entries",
    "too_short": "must not be empty",
    "timezone_aware": "must be a time with its zone, such as 2027-01-01T00:00:00Z",
    "datetime_parsing": "must be a time such as 2027-01-01T00:00:00Z",
    "datetime_from_date_parsing": "must be a time such as 2027-01-01T00:00:00Z",
    "datetime_type": "must be a time such as 2027-01-01T00:00:00Z",
}


class _Listed(dict[str, Any]):
    """The values of a message, as people list them."""

    def __getitem__(self, key: str) -> str:
        return str(super().__getitem__(key)).replace("'", "").replace(" or ", ", ")


def unknown(name: str, known: Iterable[str]) -> str:
    """What to say about a field that does not exist, with the nearest one that does."""
    near = difflib.get_close_matches(name, list(known), n=1)
    hint = f'; did you mean "{near[0]}"?' if near else ""
    return f'unknown field "{name[:64]}"{hint}'


def _fields_at(model: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    """The names that the object at ``path`` may have."""
    here: Any = model
    for step in path:
        if isinstance(step, int):
            continue
        by_name = {field.alias or name: field for name, field in here.model_fields.items()}
        if step not in by_name:
            return []
        here = _model_in(by_name[step].annotation)
        if here is None:
            return []
    return [field.alias or name for name, field in here.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that an annotation is of, through lists and optional fields."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)
