"""Compiling one state after another says what compiling the last one alone says."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tollhouse.compile import Compiler, compile_snapshot
from tollhouse.inventory import PLATFORM_LABEL, Inventory
from tollhouse.snapshot import key_digest, shards
from tollhouse_operator.encode import Encoder
from unit.test_compile import manifest, secret

Manifest = dict[str, Any]

NAMESPACES = ("a", "b")
NAMES = ("one", "two", "three")
MODELS = ("x", "y", "openai/gpt-4o", "demo/*", "auto")
TIMES = (None, "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")
KEYS = ("sk-th-PLANTED-one-000000", "sk-th-PLANTED-two-000000", "short-PLANTED")

places = st.tuples(st.sampled_from(NAMESPACES), st.sampled_from(NAMES))
times = st.sampled_from(TIMES)
models = st.lists(st.sampled_from(MODELS), min_size=1, max_size=2, unique=True)
patterns = st.lists(st.sampled_from((*MODELS, "demo/one", "*", "nothing")), max_size=2)
shares = st.sampled_from(
    [
        {"from": "Same"},
        {"from": "All"},
        {"from": "Selector", "selector": {"matchLabels": {"llm": "yes"}}},
        {"from": "Selector", "selector": {"matchLabels": {"kubernetes.io/metadata.name": "b"}}},
    ]
)


def _made(kind: str, place: tuple[str, str], spec: Any, time: str | None) -> Manifest:
    namespace, name = place
    made = {"creationTimestamp": time} if time else {}
    return manifest(kind, name, spec, namespace, **made)


providers = st.builds(
    lambda place, spec, time: _made("Provider", place, spec, time),
    places,
    st.sampled_from(
        [
            {"type": "Mock"},
            {"type": "Mock", "mock": {"text": "PLANTED"}},
            {"type": "OpenAI", "credentials": {"secretRef": {"name": "one", "key": "api-key"}}},
            {"type": "OpenAI", "tls": {"caRef": {"kind": "Secret", "name": "two"}}},
            {"type": "OpenAI", "serviceRef": {"name": "one", "port": 80}},
            {"type": "OpenAI", "timeouts": {"total": "9m"}, "baseURL": "https://p.example/v1"},
            {"type": "Nothing"},
        ]
    ),
    times,
)
routes = st.builds(
    lambda place, names, target, share, extra, time: _made(
        "ModelRoute",
        place,
        {"models": names, "targets": [{"provider": {"name": target}}], "shareWith": share, **extra},
        time,
    ),
    places,
    models,
    st.sampled_from(NAMES),
    shares,
    st.sampled_from(
        [
            {},
            {"parameters": {"defaults": {"seed": 1}}},
            {"parameters": {"defaults": {"seed": 1.0}}},
            {"parameters": {"defaults": {"seed": True}}},
            {"parameters": {"defaults": {"seed": 10**30}}},
            {"retries": {"attempts": -1}},
        ]
    ),
    times,
)
callers = st.builds(
    lambda place, name, allowed, aliased, time: _made(
        "ApiKey",
        place,
        {"allowedModels": allowed, "modelAliases": {"fast": aliased}}
        | ({"secretName": name} if name else {}),
        time,
    ),
    places,
    st.sampled_from([None, *NAMES]),
    patterns,
    st.sampled_from(MODELS),
    times,
)


def _held(place: tuple[str, str], key: str, rotated: str | None) -> Manifest:
    namespace, name = place
    found = secret(name, namespace, OPENAI_API_KEY=key, **{"api-key": f"sk-{name}-PLANTED"})
    if rotated:
        entry = {"digest": key_digest(rotated), "validUntil": "2030-01-01T00:00:00Z"}
        found["metadata"]["annotations"] = {"tollhouse.dev/previous-digests": json.dumps([entry])}
    return found


secrets = st.builds(_held, places, st.sampled_from(KEYS), st.sampled_from([None, *KEYS]))
others = st.sampled_from(
    [
        *(
            {
                "apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": name, "labels": labels},
            }
            for name in NAMESPACES
            for labels in ({}, {"llm": "yes"}, {PLATFORM_LABEL: "true"})
        ),
        *(
            {
                "apiVersion": "v1", "kind": "Service",
                "metadata": {"name": "one", "namespace": "a"}, "spec": {"ports": [{"port": port}]},
            }
            for port in (80, 81)
        ),
        manifest("Budget", "one", {"selector": {}, "amount": "1", "period": "Month"}, "a"),
    ]
)  # fmt: skip
applied = st.one_of(providers, routes, callers, secrets, others)
kinds = st.sampled_from(("Provider", "ModelRoute", "ApiKey", "Secret", "Service", "Namespace"))
changes = st.one_of(
    applied, applied, applied, st.tuples(kinds, places), st.tuples(st.just("ApiKey"), places)
)


@given(st.lists(st.lists(changes, max_size=4), max_size=12))
@settings(deadline=None, max_examples=300)
def test_what_was_kept_changes_nothing_that_is_said(steps):
    inventory, compiler, encoder = Inventory(), Compiler(), Encoder()
    for step in steps:
        for change in step:
            if isinstance(change, dict):
                inventory.apply(change)
            else:
                kind, (namespace, name) = change
                inventory.remove(kind, namespace, name)
        resources = inventory.resources()
        kept, fresh = compiler.compile(resources), compile_snapshot(resources)
        assert kept == fresh
        # Equal is not enough where 1 and true are: the bytes must be the same.
        assert encoder.encode(kept.snapshot) == shards(fresh.snapshot)


def _crowd(keys: int, routes: int) -> Inventory:
    inventory = Inventory()
    inventory.apply(manifest("Provider", "echo", {"type": "Mock"}))
    for number in range(routes):
        spec = {"models": [f"demo/{number}"], "targets": [{"provider": {"name": "echo"}}]}
        inventory.apply(manifest("ModelRoute", f"r{number}", spec))
    for number in range(keys):
        inventory.apply(manifest("ApiKey", f"k{number}", {"allowedModels": ["demo/1"]}))
        inventory.apply(secret(f"k{number}", OPENAI_API_KEY=f"sk-th-PLANTED-{number:012}"))
    return inventory


@pytest.mark.parametrize(
    ("change", "compiled", "encoded"),
    [
        (lambda: manifest("ApiKey", "k7", {"owner": "new"}), {"ApiKey": 1}, 1),
        (lambda: secret("k7", OPENAI_API_KEY="sk-th-PLANTED-another-one"), {"ApiKey": 1}, 2),
        (lambda: manifest("ApiKey", "k7", {"allowedModels": ["demo/1"]}), {}, 0),
        (
            lambda: manifest("ModelRoute", "r7", {"models": ["demo/7"], "strict": True,
                             "targets": [{"provider": {"name": "echo"}}]}),
            {"ModelRoute": 1}, 1,
        ),
    ],
    ids=["ApiKey", "Secret", "nothing", "ModelRoute"],
)  # fmt: skip
def test_one_change_compiles_one_object_and_encodes_its_shard(
    change: Callable[[], Manifest],
    compiled: dict[str, int],
    encoded: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import tollhouse.compile as module

    inventory, compiler, encoder = _crowd(500, 50), Compiler(), Encoder()
    encoder.encode(compiler.compile(inventory.resources()).snapshot)
    before, counts = encoder.encoded, dict[str, int]()

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(resource: Any, *rest: Any) -> Any:
            counts[resource.kind] = counts.get(resource.kind, 0) + 1
            return function(resource, *rest)

        return counted

    for name in ("compile_provider", "compile_route", "compile_caller"):
        monkeypatch.setattr(module, name, counting(getattr(module, name)))
    inventory.apply(change())
    encoder.encode(compiler.compile(inventory.resources()).snapshot)
    assert counts == compiled
    assert encoder.encoded - before <= encoded
