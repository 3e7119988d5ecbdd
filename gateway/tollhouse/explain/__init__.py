"""``tollhouse explain``: which key, route, targets, limits and budgets a request would meet.

It asks the very code that serves requests, over a table compiled from a folder or from a cluster,
and adds why what was not chosen was passed over. Counters are not read: limits and budgets are told
by their amounts, not by what is left of them. No key and no credential is ever printed.
"""

import json
import time
from dataclasses import asdict, dataclass, replace

from rich.console import Console
from rich.text import Text

from tollhouse import auth, failures
from tollhouse.api import chat
from tollhouse.api import reasoning as reasons
from tollhouse.compile import KEY_NAME, Compiled, Finding, compile_snapshot
from tollhouse.endpoints.chat import needs_of, searching
from tollhouse.errors import ConfigError, NoTarget, RequestError
from tollhouse.explain.bounds import Bound, bounds
from tollhouse.explain.view import View, of_cluster, of_folder, secret_of
from tollhouse.resources import ModelRoute, Ref, Resource, Resources
from tollhouse.routing import (
    NOTHING,
    Needs,
    Resolution,
    Table,
    allows,
    lacks,
    split_effort,
    upstream_model,
)
from tollhouse.snapshot import Credential, Key, Route

__all__ = [
    "Bound",
    "Caller",
    "Explanation",
    "PassedOver",
    "Refusal",
    "Step",
    "View",
    "explain",
    "of_cluster",
    "of_folder",
    "render",
]

_MOST_PASSED_OVER = 50


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the caller would be told: as in the error envelope."""

    status: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Caller:
    """The ApiKey, and what of it the model's name met: ``alias`` is what the name was one for."""

    name: str
    owner: str | None
    allowed_models: tuple[str, ...] | None
    alias: str | None


@dataclass(frozen=True, slots=True)
class Step:
    """One target, in the order of tries; ``share`` is of its priority's requests, from 0 to 1."""

    priority: int
    provider: str
    type: str
    model: str
    weight: int
    share: float


@dataclass(frozen=True, slots=True)
class PassedOver:
    what: str
    why: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """``model`` is the canonical id, ``max_tokens`` the cap on the answer. What a refusal comes
    before is None or empty."""

    requested: str
    refusal: Refusal | None = None
    caller: Caller | None = None
    effort: str | None = None
    model: str | None = None
    route: str | None = None
    max_tokens: int | None = None
    retries: str | None = None
    targets: tuple[Step, ...] = ()
    limits: tuple[Bound, ...] = ()
    budgets: tuple[Bound, ...] = ()
    passed_over: tuple[PassedOver, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 when the request would be served, else 1."""
        return 0 if self.refusal is None else 1

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)


def explain(
    view: View,
    *,
    api_key: str | None = None,
    presented: Credential | None = None,
    model: str | None = None,
    body: bytes | None = None,
    now: float | None = None,
) -> Explanation:
    """What a chat completion would meet, by the key called ``api_key`` (``namespace/name``), or by
    the key that is ``presented``.

    ``body`` is the request's JSON, whose model ``model`` replaces; without a body, a plain request.
    ``now`` is in seconds since the epoch. Raises ConfigError for what is no such question.
    """
    resources, compiled = view.resources, compile_snapshot(view.resources)
    table = Table(compiled.snapshot, "")
    name = model if model is not None else _model_in(body)
    found = Explanation(requested=name, notes=view.notes)
    try:
        caller = _caller(view, compiled, api_key, presented, time.time() if now is None else now)
    except RequestError as error:
        return replace(found, refusal=_refusal(error))
    bare, effort = split_effort(name)
    asked = caller.model_aliases.get(bare, bare)
    found = replace(
        found,
        caller=Caller(
            caller.id, caller.owner, caller.allowed_models, asked if asked != bare else None
        ),
        effort=effort,
        passed_over=_others(view, compiled, caller, asked),
    )
    try:
        request = chat.parse(_body(body, name)) if body is not None else None
        reasoning = reasons.asked(request, effort) if request is not None else None
        needs = needs_of(request, reasoning) if request is not None else NOTHING
        found = _with_candidates(found, table, caller, asked, needs)
        resolution = table.resolve(caller, name, needs)
        if request is not None:
            reasons.check(reasoning, resolution.route)
            if request.web_search:
                resolution = searching(request, resolution)
    except RequestError as error:
        return replace(found, refusal=_refusal(error))
    return _resolved(found, resources, compiled, caller, resolution)


def render(found: Explanation, console: Console) -> None:
    """Prints an explanation for people: what is met in order, then what was passed over."""
    caller = found.caller
    rows: list[tuple[str, str]] = []
    if caller is not None:
        allowed = "all that are shared with it"
        if caller.allowed_models is not None:
            allowed = ", ".join(caller.allowed_models) or "none"
        rows.append(("key", f"{caller.name}" + (f", owner {caller.owner}" if caller.owner else "")))
        rows.append(("may call", allowed))
    rows.append(("asked for", found.requested))
    if found.effort is not None:
        rows.append(("effort", found.effort))
    if caller is not None and caller.alias is not None:
        rows.append(("alias of", caller.alias))
    if found.route is not None:
        rows.append(("model", found.model or ""))
        rows.append(("route", found.route))
        rows.append(("answer", f"{found.max_tokens or 'any number of'} tokens at most"))
        rows.append(("retries", found.retries or ""))
    for number, step in enumerate(found.targets, 1):
        share = f"{step.share:.0%} of its priority" if step.weight else "only when others failed"
        where = f"Provider {step.provider} ({step.type}), model {step.model}"
        rows.append((f"target {number}", f"priority {step.priority}, {share}: {where}"))
    rows += [("limit", f"{it.says}  [{it.source}]") for it in found.limits]
    rows += [("budget", f"{it.says}  [{it.source}]") for it in found.budgets]
    rows += [("passed over", f"{it.what}: {it.why}") for it in found.passed_over]
    rows += [("note", it) for it in found.notes]
    width = max(len(label) for label, _ in rows)
    for label, text in rows:
        console.print(Text.assemble((label.rjust(width), "cyan"), "  ", text), soft_wrap=True)
    if found.refusal is not None:
        refusal = found.refusal
        console.print(
            Text(f"refused with {refusal.status} {refusal.code}: {refusal.message}", "bold red"),
            soft_wrap=True,
        )
    else:
        console.print(Text("it would be served", "green"), soft_wrap=True)


def _resolved(
    found: Explanation,
    resources: Resources,
    compiled: Compiled,
    caller: Key,
    resolution: Resolution,
) -> Explanation:
    route = resolution.route
    retries = route.retries
    refusal = None
    if not route.targets:
        refusal = _refusal(failures.answer_for(NoTarget("no target"), route, None, 0))
    limits, budgets = bounds(compiled.snapshot, caller, resolution)
    return replace(
        found,
        refusal=refusal,
        model=resolution.model,
        route=route.id,
        max_tokens=resolution.max_tokens,
        retries=f"{retries.attempts} for each priority, on {', '.join(retries.on)}",
        targets=_steps(compiled, resolution),
        limits=limits,
        budgets=budgets,
        passed_over=tuple(it for it in found.passed_over if it.what != f"ModelRoute {route.id}")
        + _left_out(resources, compiled, route),
    )


def _steps(compiled: Compiled, resolution: Resolution) -> tuple[Step, ...]:
    targets = sorted(resolution.route.targets, key=lambda it: (it.priority, -it.weight))
    sums: dict[int, int] = {}
    for target in targets:
        sums[target.priority] = sums.get(target.priority, 0) + target.weight
    providers = compiled.snapshot.providers
    return tuple(
        Step(
            priority=target.priority,
            provider=target.provider,
            type=providers[target.provider].type,
            model=upstream_model(resolution, target),
            weight=target.weight,
            share=round(target.weight / sums[target.priority], 4) if sums[target.priority] else 0.0,
        )
        for target in targets
        if target.provider in providers
    )


def _caller(
    view: View, compiled: Compiled, name: str | None, presented: Credential | None, now: float
) -> Key:
    """The caller, by the code that lets callers in. Raises RequestError as that does."""
    if presented is None:
        namespace, _, plain = (name or "").partition("/")
        presented = _key_of(view, compiled, (namespace, plain))
    headers = {"Authorization": f"Bearer {presented.value}"}
    return auth.identify(headers, compiled.snapshot, now)


def _key_of(view: View, compiled: Compiled, ref: Ref) -> Credential:
    """The key in the Secret of an ApiKey. Raises ConfigError where the ApiKey is not there, and
    RequestError where none can have its key."""
    resource = view.resources.api_keys.get(ref)
    full = "/".join(ref)
    if resource is None:
        known = ", ".join(sorted("/".join(it) for it in view.resources.api_keys)[:10]) or "none"
        raise ConfigError(f"there is no ApiKey {full} that can be read; there are: {known}")
    if errors := _errors(view, compiled, resource):
        raise RequestError("invalid_api_key", f"No caller has a key of the ApiKey {full}: {errors}")
    secret = view.resources.secrets[secret_of(resource)]
    return secret.data[KEY_NAME]


def _errors(view: View, compiled: Compiled, resource: Resource) -> str:
    """What keeps an object out of force, in the cluster's own words where it has some."""
    told = view.told.get((resource.kind, resource.ref))
    if told is not None:
        return told
    findings = compiled.by_object().get((resource.kind, *resource.ref), ())
    return "; ".join(_said(it) for it in findings if it.severity == "Error")


def _others(view: View, compiled: Compiled, caller: Key, name: str) -> tuple[PassedOver, ...]:
    """Every ModelRoute that has the name too, with why it does not answer this caller."""
    found: list[PassedOver] = []
    live = compiled.snapshot.routes
    for ref, resource in sorted(view.resources.routes.items()):
        pattern = next((it for it in resource.spec.models if _fits(it, name)), None)
        if pattern is None:
            continue
        route = live.get("/".join(ref))
        if route is None:
            why = _errors(view, compiled, resource) or "it is not in force"
        elif route.shared_with is not None and caller.namespace not in route.shared_with:
            why = f"its shareWith does not name the namespace {caller.namespace}"
        elif not allows(caller, name if pattern.endswith("*") else route.models[0], route):
            why = "it is not in the key's allowedModels"
        elif pattern != name and not pattern.endswith("*"):
            why = f"the bare name fits other routes too; ask for {pattern}"
        else:
            why = "another route has the name more exactly"
        found.append(PassedOver(f"ModelRoute {'/'.join(ref)}", why))
    return tuple(found[:_MOST_PASSED_OVER])


def _fits(pattern: str, name: str) -> bool:
    """Whether a route with this name could be meant, a bare name (``gpt-4o``) among others."""
    if pattern.endswith("*"):
        return name.startswith(pattern[:-1])
    return pattern == name or ("/" not in name and pattern.rpartition("/")[2] == name)


def _with_candidates(
    found: Explanation, table: Table, caller: Key, asked: str, needs: Needs
) -> Explanation:
    """With what a route that chooses among others looks at, if the name comes to one."""
    try:
        route = table.describe(caller, asked)
    except RequestError:
        return found
    if route.select is None:
        return found
    passed: list[PassedOver] = []
    for model, candidate in table.candidates(caller, route.select):
        missing = lacks(candidate, needs)
        if not allows(caller, model, candidate):
            why = "it is not in the key's allowedModels"
        elif missing:
            why = f"the request needs what it lacks: {', '.join(missing)}"
        elif not candidate.targets:
            why = "it has no target that can be called"
        else:
            continue
        passed.append(PassedOver(f"{model} (ModelRoute {candidate.id})", why))
    notes = {
        "Latency": "which is tried first depends on first-byte times that only a gateway knows",
        "Weight": "which is tried first is drawn by weight for each request",
    }
    note = notes.get(route.select.by)
    return replace(
        found,
        passed_over=(*found.passed_over, *passed),
        notes=(*found.notes, f"ModelRoute {route.id} chooses by {route.select.by}")
        + ((note,) if note else ()),
    )


def _left_out(resources: Resources, compiled: Compiled, route: Route) -> tuple[PassedOver, ...]:
    """The targets of the route's resource that compiling left out."""
    ref = (route.namespace, route.name)
    findings = compiled.by_object().get((ModelRoute.kind, *ref), ())
    targets = resources.routes[ref].spec.targets or ()
    return tuple(
        PassedOver(f"target {number}, Provider {route.namespace}/{target.provider.name}", _said(it))
        for number, target in enumerate(targets)
        for it in findings
        if it.severity == "Error" and it.path.startswith(f"spec.targets[{number}]")
    )


def _said(finding: Finding) -> str:
    return f"{finding.reason}: {finding.message}"


def _refusal(error: RequestError) -> Refusal:
    return Refusal(error.status, error.code, error.message)


def _model_in(body: bytes | None) -> str:
    """The model that a request names. Raises ConfigError when there is none."""
    try:
        model = json.loads(body or b"{}").get("model")
    except (ValueError, AttributeError):
        raise ConfigError("the request is not a JSON object") from None
    if not isinstance(model, str) or not model:
        raise ConfigError("give --model, or a --file whose request names one")
    return model


def _body(body: bytes, model: str) -> bytes:
    """The request with this model."""
    try:
        fields = json.loads(body)
    except ValueError:
        return body
    return json.dumps({**fields, "model": model}).encode() if isinstance(fields, dict) else body
