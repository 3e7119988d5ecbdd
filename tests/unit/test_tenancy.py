"""Namespaces side by side: nobody takes a name from anybody, nor names what is not its own."""

from typing import Any

import pytest

from tollhouse.compile import Compiled, compile_snapshot
from tollhouse.inventory import PLATFORM_LABEL, Inventory
from tollhouse.resources import ResourceError, parse
from tollhouse.routing import Table
from tollhouse.snapshot import Key
from unit.test_compile import ECHO, manifest, secret

Manifest = dict[str, Any]
ALL = {"from": "All"}
SAME = {"from": "Same"}
EARLY, LATE = "2026-01-01T00:00:00Z", "2026-06-01T00:00:00Z"


def named(*namespaces: str) -> Manifest:
    """``shareWith`` for these namespaces."""
    expressions = [
        {"key": "kubernetes.io/metadata.name", "operator": "In", "values": list(namespaces)}
    ]
    return {"from": "Selector", "selector": {"matchExpressions": expressions}}


def route(namespace: str, *models: str, made: str = EARLY, **spec: Any) -> Manifest:
    spec = {"models": list(models), "targets": [{"provider": {"name": "echo"}}], **spec}
    return manifest("ModelRoute", "r", spec, namespace, creationTimestamp=made)


def space(name: str, **labels: str) -> Manifest:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


SPACES = [
    *(space(name) for name in ("a", "b", "c", "shop")),
    space("ai", **{PLATFORM_LABEL: "true"}),
    *({**ECHO, "metadata": {"name": "echo", "namespace": it}} for it in ("ai", "a", "b", "c")),
]


def compiled(*manifests: Manifest, platform: tuple[str, ...] = ()) -> Compiled:
    inventory = Inventory(platform)
    for it in (*SPACES, *manifests):
        inventory.apply(it)
    return compile_snapshot(inventory.resources())


def met(result: Compiled, namespace: str, model: str) -> str:
    """The route that a caller of this namespace meets."""
    return Table(result.snapshot, "d").resolve(Key(namespace, "k"), model).route.id


def told(result: Compiled) -> list[tuple[str, str]]:
    return [(it.namespace, str(it.reason)) for it in result.findings]


class TestNames:
    def test_an_older_private_route_does_not_keep_the_platforms_from_a_name(self):
        result = compiled(route("a", "x"), route("ai", "x", made=LATE, shareWith=ALL))
        assert met(result, "shop", "x") == "ai/r"
        assert met(result, "a", "x") == "a/r"
        assert told(result) == [("a", "NameShared")]

    @pytest.mark.parametrize("share", [ALL, named("a", "b", "shop")])
    def test_an_older_shared_route_does_not_take_the_platforms_name(self, share):
        result = compiled(
            route("a", "x", shareWith=share), route("ai", "x", made=LATE, shareWith=ALL)
        )
        assert met(result, "shop", "x") == met(result, "b", "x") == "ai/r"
        assert ("ai", "NameShared") not in told(result)

    def test_another_tenants_shared_route_never_enters_ones_own_namespace(self):
        result = compiled(route("a", "x", shareWith=ALL), route("b", "x", made=LATE))
        assert met(result, "b", "x") == "b/r"
        assert met(result, "c", "x") == "a/r"

    def test_between_tenants_the_older_has_a_name_where_both_share_it(self):
        result = compiled(
            route("a", "x", made=LATE, shareWith=ALL), route("b", "x", shareWith=named("c"))
        )
        assert met(result, "c", "x") == "b/r"
        assert met(result, "shop", "x") == "a/r"
        assert met(result, "a", "x") == "a/r"
        assert told(result) == [("a", "NameShared")]

    @pytest.mark.parametrize(
        ("theirs", "asked"),
        [
            ("openai/gpt-4o", "openai/gpt-4o"),  # an exact name under the platform's wildcard
            ("openai/gpt-*", "openai/gpt-4o"),  # a longer wildcard
            ("evil/claude-sonnet-4", "claude-sonnet-4"),  # a bare name made ambiguous
            ("small", "small"),
        ],
    )
    def test_nothing_that_a_tenant_shares_comes_between_the_platform_and_others(
        self, theirs, asked
    ):
        ours = route("ai", "openai/*", "small", made=LATE, shareWith=ALL)
        other = route("ai", "anthropic/claude-sonnet-4", made=LATE, shareWith=ALL)
        other["metadata"]["name"] = "claude"
        before = met(compiled(ours, other), "shop", asked)
        result = compiled(ours, other, route("a", theirs, shareWith=ALL))
        assert met(result, "shop", asked) == before

    def test_a_choice_of_the_platforms_does_not_fall_on_what_a_tenant_shares(self):
        auto = manifest(
            "ModelRoute", "auto",
            {"models": ["auto"], "select": {"from": ["openai/*"], "by": "Price"}, "shareWith": ALL},
            "ai",
        )  # fmt: skip
        ours = route("ai", "openai/gpt-4o", shareWith=ALL)
        bait = route("a", "openai/gratis", shareWith=ALL, free=True)
        assert met(compiled(auto, ours, bait), "shop", "auto") == "ai/r"

    def test_the_operators_own_namespace_is_the_platforms_without_a_label(self):
        both = (route("a", "x", shareWith=ALL), route("b", "x", made=LATE, shareWith=ALL))
        assert met(compiled(*both), "shop", "x") == "a/r"
        assert met(compiled(*both, platform=("b",)), "shop", "x") == "b/r"

    def test_a_label_of_a_route_or_key_makes_nobody_the_platform(self):
        posing = route("a", "x", shareWith=ALL)
        posing["metadata"]["labels"] = {PLATFORM_LABEL: "true"}
        result = compiled(posing, route("ai", "x", made=LATE, shareWith=ALL))
        assert met(result, "shop", "x") == "ai/r"

    def test_a_model_is_listed_once(self):
        result = compiled(route("a", "x"), route("ai", "x", shareWith=ALL))
        listed = Table(result.snapshot, "d").visible(Key("a", "k"))
        assert [it.id for it in listed] == ["a/r"]

    def test_a_route_that_is_not_shared_is_not_seen(self):
        result = compiled(route("a", "x"), route("b", "y", shareWith=named("c")))
        table = Table(result.snapshot, "d")
        assert [it.id for it in table.visible(Key("shop", "k"))] == []
        assert [it.id for it in table.visible(Key("c", "k"))] == ["b/r"]


class TestReferences:
    """What a resource names is in its own namespace, and there is no way to say another."""

    @pytest.mark.parametrize(
        ("kind", "spec"),
        [
            ("Provider", {"type": "OpenAI", "credentials": {"secretRef": {"name": "s"}}}),
            ("Provider", {"type": "OpenAI", "tls": {"caRef": {"kind": "Secret", "name": "s"}}}),
            ("Provider", {"type": "OpenAI", "serviceRef": {"name": "s", "port": 80}}),
            ("ModelRoute", {"models": ["x"], "targets": [{"provider": {"name": "echo"}}]}),
            ("ApiKey", {"secretName": "s"}),
        ],
    )
    def test_another_namespaces_objects_are_not_found(self, kind, spec):
        theirs = [
            secret("s", "a", OPENAI_API_KEY="sk-th-PLANTEDtheirs000000", **{"api-key": "PLANTED"}),
            {"apiVersion": "v1", "kind": "Service",
             "metadata": {"name": "s", "namespace": "a"}, "spec": {"ports": [{"port": 80}]}},
        ]  # fmt: skip
        result = compiled(*theirs, manifest(kind, "mine", spec, "shop"))
        (finding,) = [it for it in result.findings if it.condition == "ResolvedRefs"][:1]
        assert (finding.namespace, finding.severity) == ("shop", "Error")
        assert "PLANTED" not in repr(result)
        assert result.snapshot.key_count() == 0

    @pytest.mark.parametrize(
        ("kind", "spec"),
        [
            ("Provider", {"type": "OpenAI", "credentials": {
                "secretRef": {"name": "s", "namespace": "a"}}}),
            ("Provider", {"type": "OpenAI", "credentials": {"secretRef": {"name": "a/s"}}}),
            ("Provider", {"type": "OpenAI", "credentials": {"secretRef": {"name": "../a/s"}}}),
            ("Provider", {"type": "OpenAI", "tls": {
                "caRef": {"kind": "Secret", "name": "s", "namespace": "a"}}}),
            ("Provider", {"type": "OpenAI", "tls": {"caRef": {"kind": "Secret", "name": "a/s"}}}),
            ("Provider", {"type": "OpenAI", "serviceRef": {
                "name": "s", "namespace": "a", "port": 80}}),
            ("ModelRoute", {"models": ["x"], "targets": [
                {"provider": {"name": "echo", "namespace": "a"}}]}),
            ("ModelRoute", {"models": ["x"], "targets": [{"provider": {"name": "a/echo"}}]}),
            ("ApiKey", {"secretName": "a/s"}),
            ("ApiKey", {"secretName": "s", "secretNamespace": "a"}),
        ],
    )  # fmt: skip
    def test_another_namespace_cannot_be_named(self, kind, spec):
        with pytest.raises(ResourceError):
            parse(manifest(kind, "mine", spec, "shop"))
