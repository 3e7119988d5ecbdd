"""One entry of LiteLLM's ``model_list``: the account it uses, and the target that it is."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any
from urllib.parse import urlsplit

from tollhouse.importing import Remark, Wanted
from tollhouse.importing.vendors import VENDORS, Vendor, split
from tollhouse.snapshot import Credential

Remarks = list[Remark]

_PARAMETERS = (
    *("temperature", "top_p", "max_tokens", "max_completion_tokens", "n", "stop", "seed"),
    *("presence_penalty", "frequency_penalty", "reasoning_effort", "response_format"),
    *("parallel_tool_calls", "service_tier", "logit_bias"),
)
_TAKEN = frozenset(
    (
        *("model", "api_base", "base_url", "api_key", "api_version", "organization"),
        *("extra_headers", "headers", "custom_llm_provider", "litellm_credential_name"),
        *("aws_region_name", "aws_role_name", "aws_access_key_id", "aws_secret_access_key"),
        *("vertex_project", "vertex_location", "vertex_credentials", "tenant_id", "client_id"),
        *("weight", "order", "rpm", "tpm", "timeout", "stream_timeout", "max_retries"),
        *("num_retries", "input_cost_per_token", "output_cost_per_token"),
        *("cache_read_input_token_cost", "mock_response", "extra_body", *_PARAMETERS),
    )
)
_WHY = {
    "max_parallel_requests": "give the Provider `maxConcurrent`, which holds for each gateway pod",
    "tags": "requests are not routed by tags; make a ModelRoute for each",
    "client_secret": "use workload identity, or an API key",
    "drop_params": "the route's `parameters.unsupported` says it, and Drop is its default",
    "additional_drop_params": "parameters are dropped by what a target can take, not by name",
    "allowed_openai_params": "unknown parameters reach the provider as they came",
    "use_in_pass_through": "docs/endpoints.md lists the paths that are served",
    "merge_reasoning_content_in_choices": "reasoning stays in its own field",
}
_INFO_TAKEN = frozenset(
    (
        *("id", "mode", "base_model", "max_tokens", "max_input_tokens", "max_output_tokens"),
        *("supports_vision", "supports_function_calling", "supports_reasoning"),
        *("supports_web_search", "input_cost_per_token", "output_cost_per_token"),
        *("cache_read_input_token_cost", "db_model", "description", "metadata"),
    )
)
_CAPABILITIES = {
    "supports_vision": "vision",
    "supports_function_calling": "tools",
    "supports_reasoning": "reasoning",
    "supports_web_search": "webSearch",
}
_MOST_WEIGHT = 1_000_000
_ENVIRON = "os.environ/"
_BASE = re.compile(r"https?://[^\s/?#@]+(/[^\s?#]*)?")
_SECRET = re.compile(r"auth|key|token|secret|cookie|password", re.IGNORECASE)
"""Names whose values are not written where anybody may read them."""
REPLACE = "REPLACE-ME"


@dataclass(frozen=True, slots=True)
class Account:
    """A Provider to be: what two deployments must have in common to share one. ``key`` is where
    the credential is said to be, and ``value`` the credential where it stands in the file."""

    vendor: str
    spec: str
    key: str | None
    value: Credential | None = None


@dataclass(frozen=True, slots=True)
class Deployment:
    """``model`` None: whatever the wildcard matched. ``timeout`` and ``stream_timeout`` are in
    seconds, ``defaults`` are request fields, ``spec`` is the Provider's, secretRef apart."""

    path: str
    group: str
    account: Account
    spec: Mapping[str, Any]
    model: str | None
    weight: int | None = None
    order: int | None = None
    rpm: int | None = None
    tpm: int | None = None
    timeout: float | None = None
    stream_timeout: float | None = None
    retries: int | None = None
    pricing: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    capabilities: Mapping[str, Any] = field(default_factory=dict)


def read(
    entry: Mapping[str, Any],
    path: str,
    credentials: Mapping[str, Mapping[str, Any]],
    remarks: Remarks,
) -> Deployment | None:
    """The deployment of one entry; None, with a remark why, when nothing here is like it."""
    group, given = entry.get("model_name"), entry.get("litellm_params")
    if not isinstance(group, str) or not isinstance(given, Mapping):
        remarks.append(Remark("no equivalent", path, "it has no model_name with litellm_params"))
        return None
    where = f"{path}.litellm_params"
    named = given.get("litellm_credential_name")
    params = {**credentials.get(str(named), {}), **given}
    if named is not None and str(named) not in credentials:
        why = "credential_list has no entry of this name"
        remarks.append(Remark("do", f"{where}.litellm_credential_name", why))
    declared = params.get("custom_llm_provider")
    vendor, own = split(str(params.get("model", "")), str(declared) if declared else None)
    if "mock_response" in params:
        vendor = "mock"
    if vendor is None:
        why = "no provider type is known for it; an upstream that speaks OpenAI's protocol is a "
        remarks.append(
            Remark("no equivalent", f"{where}.model", f"{why}Provider of type OpenAI with its URL")
        )
        return None
    model = _target_model(group, own, f"{where}.model", remarks)
    if model is None:
        return None
    account = _account(vendor, params, where, remarks)
    if account is None:
        return None
    info = entry.get("model_info")
    told = info if isinstance(info, Mapping) else {}
    for name in params:
        if name not in _TAKEN:
            why = _WHY.get(name, "nothing here does the same")
            remarks.append(Remark("no equivalent", f"{where}.{name}", why))
    for name in told:
        if name not in _INFO_TAKEN:
            why = "nothing here does the same"
            if name == "access_groups":
                why = "list the models in each ApiKey's `allowedModels`"
            remarks.append(Remark("no equivalent", f"{path}.model_info.{name}", why))
    extra = _extra_body(params, where, remarks)
    numbers = {**{k: entry[k] for k in ("rpm", "tpm", "weight") if k in entry}, **params}
    return Deployment(
        path=path,
        group=group,
        account=account[0],
        spec=account[1],
        model=model or None,
        weight=_whole(numbers.get("weight"), _MOST_WEIGHT),
        order=_whole(params.get("order"), 1000),
        rpm=_whole(numbers.get("rpm")) or None,
        tpm=_whole(numbers.get("tpm")) or None,
        timeout=number(params.get("timeout"), f"{where}.timeout", remarks),
        stream_timeout=number(params.get("stream_timeout"), f"{where}.stream_timeout", remarks),
        retries=_whole(params.get("num_retries", params.get("max_retries")), 10),
        pricing=_pricing({**told, **params}),
        defaults={
            **{name: params[name] for name in _PARAMETERS if params.get(name) is not None},
            **extra,
        },
        capabilities=_capabilities(told),
    )


def number(value: Any, path: str, remarks: Remarks) -> float | None:
    """A number of seconds, whether YAML took it for one or not; None with a remark otherwise."""
    if value is None:
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not 0 < found < 99_999:
        remarks.append(Remark("do", path, "it is no number of seconds that can be taken over"))
        return None
    return found


def variable_of(value: Any) -> str | None:
    """``NAME`` of ``os.environ/NAME``."""
    if isinstance(value, str) and value.startswith(_ENVIRON):
        return value.removeprefix(_ENVIRON)
    return None


def wanted(provider: str, account: Account) -> Wanted | None:
    """The Secret that a Provider of this account names."""
    if account.key is None:
        return None
    return Wanted(provider, "api-key", account.key, account.value)


def _target_model(group: str, own: str, path: str, remarks: Remarks) -> str | None:
    """The provider's name for the model; empty for what a wildcard matched, None for a remark."""
    if not own.endswith("*"):
        return own
    if own == "*" and group.endswith("*"):
        return ""
    remarks.append(
        Remark(
            "no equivalent", path,
            "what a wildcard matched is sent as it is, so it cannot stand behind a beginning",
        )
    )  # fmt: skip
    return None


def _account(
    vendor: str, params: Mapping[str, Any], where: str, remarks: Remarks
) -> tuple[Account, dict[str, Any]] | None:
    """The account, and its Provider's spec without the Secret's name."""
    if vendor == "mock":
        said = params["mock_response"]
        spec: dict[str, Any] = {"type": "Mock", "mock": {"reply": "Text", "text": str(said)}}
        return Account(vendor, repr(spec), None), spec
    kind = VENDORS[vendor]
    spec = {"type": kind.type}
    base = _base_url(kind, params, where, remarks)
    if base is None:
        return None
    if base:
        spec["baseURL"] = base
    cloud = _cloud(kind, params, where, remarks)
    key, value = _key(kind, params, where)
    if kind.type in ("Bedrock", "VertexAI") and key is not None:
        remarks.append(Remark("do", f"{where}.api_key", "use the pod's workload identity"))
        key, value = None, None
    if cloud:
        spec["credentials"] = cloud
    headers = _headers(params, where, remarks)
    if headers:
        spec["headers"] = headers
    return Account(vendor, repr(spec), key, value), spec


def _base_url(kind: Vendor, params: Mapping[str, Any], where: str, remarks: Remarks) -> str | None:
    """The address; empty for the type's own, None where there is none."""
    name = "api_base" if params.get("api_base") else "base_url"
    given = params.get(name)
    if not given:
        if kind.needs_base:
            why = "this provider has no address of its own: give an api_base"
            remarks.append(Remark("no equivalent", f"{where}.api_base", why))
            return None
        return kind.base_url or ""
    variable = variable_of(given)
    if variable is not None:
        why = f"put the value of {variable} into spec.baseURL of the Provider"
        remarks.append(Remark("do", f"{where}.{name}", why))
        return f"https://replace-me.invalid/{variable}"
    text = str(given).rstrip("/")
    if not _BASE.fullmatch(text):
        why = "it is no http address without credentials, query and fragment"
        remarks.append(Remark("no equivalent", f"{where}.{name}", why))
        return None
    return text if text.endswith(kind.suffix) else text + kind.suffix


def _key(
    kind: Vendor, params: Mapping[str, Any], where: str
) -> tuple[str | None, Credential | None]:
    """Where the API key is said to be, and the key itself where it stands in the file."""
    given = params.get("api_key")
    if given is None:
        return (f"the-value-of-{kind.variable}" if kind.variable else None), None
    variable = variable_of(given)
    if variable is not None:
        return f"the-value-of-{variable}", None
    if str(given).lower() in ("", "none", "empty", "anything", "dummy", "sk-no-key-required"):
        return None, None
    return f"the-key-at-{where}.api_key", Credential(str(given))


def _cloud(kind: Vendor, params: Mapping[str, Any], where: str, remarks: Remarks) -> dict[str, Any]:
    """``credentials`` apart from the Secret: what Azure, AWS and Google want to know."""

    def plain(name: str, default: str = REPLACE) -> str:
        value = params.get(name, default)
        if value != REPLACE and variable_of(value) is None:
            return str(value)
        remarks.append(Remark("do", f"{where}.{name}", f"replace {REPLACE} in the Provider"))
        return REPLACE

    if kind.type == "AzureOpenAI":
        named = {"tenant_id": "tenantId", "client_id": "clientId", "api_version": "apiVersion"}
        found = {ours: plain(theirs) for theirs, ours in named.items() if params.get(theirs)}
        return {"azure": found} if found else {}
    if kind.type == "Bedrock":
        for name in ("aws_access_key_id", "aws_secret_access_key"):
            if name in params:
                why = "use the pod's workload identity, or aws_role_name, in place of fixed keys"
                remarks.append(Remark("do", f"{where}.{name}", why))
        role = params.get("aws_role_name")
        aws = {"region": plain("aws_region_name")}
        return {"aws": aws | ({"roleARN": str(role)} if role and not variable_of(role) else {})}
    if kind.type == "VertexAI":
        if "vertex_credentials" in params:
            why = "use the pod's workload identity in place of a key file"
            remarks.append(Remark("do", f"{where}.vertex_credentials", why))
        project = plain("vertex_project")
        return {"gcp": {"project": project, "location": plain("vertex_location", "us-central1")}}
    return {}


def _headers(params: Mapping[str, Any], where: str, remarks: Remarks) -> dict[str, str]:
    """Headers whose values stand in the file and are no credentials."""
    found: dict[str, str] = {}
    given = params.get("extra_headers") or params.get("headers")
    for name, value in given.items() if isinstance(given, Mapping) else ():
        if (
            _SECRET.search(str(name))
            or variable_of(value) is not None
            or not isinstance(value, str)
        ):
            why = "headers of a Provider are no place for credentials or variables"
            remarks.append(Remark("do", f"{where}.extra_headers.{name}", why))
        else:
            found[str(name)] = value
    organization = params.get("organization")
    if isinstance(organization, str) and variable_of(organization) is None:
        found["OpenAI-Organization"] = organization
    elif organization is not None:
        why = "put it into the Provider's headers as OpenAI-Organization"
        remarks.append(Remark("do", f"{where}.organization", why))
    return found


def _extra_body(params: Mapping[str, Any], where: str, remarks: Remarks) -> dict[str, Any]:
    """Fields that LiteLLM adds to every request, those aside that may be secrets."""
    given = params.get("extra_body")
    found: dict[str, Any] = {}
    for name, value in given.items() if isinstance(given, Mapping) else ():
        if _SECRET.search(str(name)) or variable_of(value) is not None:
            why = "parameters of a route are no place for credentials or variables"
            remarks.append(Remark("do", f"{where}.extra_body.{name}", why))
        else:
            found[str(name)] = value
    return found


def _pricing(given: Mapping[str, Any]) -> dict[str, str]:
    """USD per token → USD per million tokens."""
    found: dict[str, str] = {}
    for theirs, ours in (
        ("input_cost_per_token", "input"),
        ("cache_read_input_token_cost", "cachedInput"),
        ("output_cost_per_token", "output"),
    ):
        try:
            price = (Decimal(str(given[theirs])) * 1_000_000).normalize()
        except (KeyError, InvalidOperation):
            continue
        if price.is_finite() and price >= 0:
            found[ours] = f"{round(price, 9).normalize():f}"
    return found


def _capabilities(told: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        ours: told[theirs]
        for theirs, ours in _CAPABILITIES.items()
        if isinstance(told.get(theirs), bool)
    }
    window = _whole(told.get("max_input_tokens"))
    return found | ({"contextWindow": window} if window else {})


def _whole(value: Any, most: int | None = None) -> int | None:
    if isinstance(value, bool) or value is None:
        return None
    try:
        found = int(value)
    except (TypeError, ValueError):
        return None
    return max(0, found if most is None else min(found, most))


def host_word(spec: Mapping[str, Any]) -> str | None:
    """The first label of an address, to tell accounts of one vendor apart by name."""
    host = urlsplit(str(spec.get("baseURL", ""))).hostname
    return host.partition(".")[0] if host else None
