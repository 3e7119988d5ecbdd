"""What compiling promises beyond the stories of ``tests/golden/compile``."""

import random
import time
from datetime import date
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tollhouse.compile import (
    Compiled,
    Compiler,
    Finding,
    Reason,
    compile_snapshot,
    conditions,
    oversized,
)
from tollhouse.inventory import Inventory
from tollhouse.resources import GROUP, VERSION
from tollhouse.snapshot import MAX_SHARD_BYTES, shards

Manifest = dict[str, Any]


def manifest(kind: str, name: str, spec: Any, namespace: str = "ai", **metadata: Any) -> Manifest:
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace, **metadata},
        "spec": spec,
    }


def secret(name: str, namespace: str = "ai", **data: str) -> Manifest:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data}


def route(name: str, *models: str, **spec: Any) -> Manifest:
    provider = spec.pop("provider", "echo")
    targets = [{"provider": {"name": provider}}]
    return manifest("ModelRoute", name, {"models": list(models), "targets": targets, **spec})


ECHO = manifest("Provider", "echo", {"type": "Mock"})


def compiled(*manifests: Manifest) -> Compiled:
    inventory = Inventory()
    for it in manifests:
        inventory.apply(it)
    return compile_snapshot(inventory.resources())


def reasons(result: Compiled) -> list[tuple[str, str]]:
    return [(finding.name, str(finding.reason)) for finding in result.findings]


GOOD = (
    ECHO,
    manifest("Provider", "openai", {"type": "OpenAI", "credentials": {"secretRef": {"name": "s"}}}),
    secret("s", **{"api-key": "sk-provider-PLANTED-1"}),
    route("one", "openai/gpt-4o", provider="openai"),
    route("two", "demo/*"),
    manifest("ApiKey", "checkout", {"allowedModels": ["demo/*"]}),
    secret("checkout", OPENAI_API_KEY="sk-th-PLANTEDcheckout00000000"),
)
BAD = (
    manifest("Provider", "broken", {"type": "Mork"}),
    manifest("Provider", "lost", {"type": "OpenAI", "credentials": {"secretRef": {"name": "no"}}}),
    manifest("Provider", "new", {"type": "Gemini"}),
    route("invalid", "two words"),
    route("younger", "demo/*", shareWith={"from": "All"}),
    route("astray", "openai/o3", provider="nowhere"),
    route("huge", "huge", parameters={"defaults": {"seed": 10**30}}),
    manifest("ModelRoute", "auto", {"models": ["auto"], "select": {"from": ["*"]}}),
    manifest("ApiKey", "copy", {"secretName": "checkout"}),
    manifest("ApiKey", "none", {}),
    manifest("ApiKey", "typed", {"modelAlias": {}}),
    manifest("Budget", "empty", {}),
    secret("odd") | {"stringData": {"a": 1}},
    {**secret("s"), "metadata": {"name": "other", "namespace": "ai"}, "data": {"a": "?"}},
)


class TestIsolation:
    @pytest.mark.parametrize("bad", BAD, ids=lambda it: f"{it['kind']}-{it['metadata']['name']}")
    def test_one_bad_object_takes_nothing_else_down(self, bad):
        before, after = compiled(*GOOD).snapshot, compiled(*GOOD, bad).snapshot
        assert before.providers.items() <= after.providers.items()
        assert before.routes.items() <= after.routes.items()
        assert before.key_shards == after.key_shards
        shards(after)

    @given(st.lists(st.sampled_from(GOOD + BAD), unique_by=id), st.randoms())
    @settings(deadline=None, max_examples=60)
    def test_the_order_of_arrival_changes_nothing(self, chosen, order):
        shuffled = order.sample(chosen, len(chosen))
        first, second = compiled(*chosen), compiled(*shuffled)
        assert first == second
        assert shards(first.snapshot) == shards(second.snapshot)

    def test_no_finding_holds_a_secret(self):
        result = compiled(
            *GOOD, *BAD,
            manifest("Provider", "lines", {"type": "OpenAI", "credentials": {
                "secretRef": {"name": "lines"}}}),
            secret("lines", **{"api-key": "sk-PLANTED\nX-Injected: yes"}),
            manifest("ApiKey", "short", {}), secret("short", OPENAI_API_KEY="PLANTED-short"),
        )  # fmt: skip
        assert "PLANTED" not in repr(result)
        assert ("lines", "InvalidCredential") in reasons(result)
        assert ("short", "InvalidKey") in reasons(result)


class TestConflicts:
    def test_a_route_is_refused_whole_and_leaves_its_other_names_to_others(self):
        result = compiled(
            ECHO,
            route("a-first", "x"),
            route("b-refused", "x", "y"),
            route("c-third", "y"),
        )
        assert list(result.snapshot.routes) == ["ai/a-first", "ai/c-third"]
        assert reasons(result) == [("b-refused", "Conflict")]

    def test_age_goes_before_name(self):
        made = "2026-01-0{}T00:00:00Z".format
        older, younger = route("zzz", "x"), route("aaa", "x")
        older["metadata"]["creationTimestamp"] = made(1)
        younger["metadata"]["creationTimestamp"] = made(2)
        assert list(compiled(ECHO, younger, older).snapshot.routes) == ["ai/zzz"]

    def test_a_current_key_goes_before_one_that_was_rotated_away(self):
        import hashlib
        import json

        digest = hashlib.sha256(b"sk-th-PLANTEDcurrent00000000").hexdigest()
        entry = json.dumps([{"digest": digest, "validUntil": "2030-01-01T00:00:00Z"}])
        older = secret("a", OPENAI_API_KEY="sk-th-PLANTEDanother00000000")
        older["metadata"]["annotations"] = {"tollhouse.dev/previous-digests": entry}
        result = compiled(
            manifest("ApiKey", "a", {}), older,
            manifest("ApiKey", "b", {}), secret("b", OPENAI_API_KEY="sk-th-PLANTEDcurrent00000000"),
        )  # fmt: skip
        found = result.snapshot.key(digest)
        assert found is not None and (found.name, found.valid_until) == ("b", None)

    @pytest.mark.parametrize(
        "annotation",
        ["", "5", "{}", '{"digest": 1}', '[{"digest": "x", "validUntil": "2030-01-01T00:00:00Z"}]',
         '[{"digest": "%s", "validUntil": "2030-01-01"}]' % ("a" * 64), "[" * 100_000],
        ids=range(7),
    )  # fmt: skip
    def test_an_annotation_that_cannot_be_read_costs_only_the_older_keys(self, annotation):
        holder = secret("a", OPENAI_API_KEY="sk-th-PLANTEDannotated000000")
        holder["metadata"]["annotations"] = {"tollhouse.dev/previous-digests": annotation}
        result = compiled(manifest("ApiKey", "a", {}), holder)
        assert result.snapshot.key_count() == 1
        assert reasons(result) in ([("a", "InvalidAnnotation")], [])


class TestValues:
    @pytest.mark.parametrize("written", ["sk-PLANTED-1\n", "  sk-PLANTED-1", "sk-PLANTED-1\r\n"])
    def test_white_space_around_a_credential_is_not_part_of_it(self, written):
        spec = {"type": "OpenAI", "credentials": {"secretRef": {"name": "s", "key": "k"}}}
        result = compiled(manifest("Provider", "p", spec), secret("s", k=written))
        credential = result.snapshot.providers["ai/p"].credential
        assert credential is not None and credential.value == "sk-PLANTED-1"

    @pytest.mark.parametrize(
        ("canonical", "model"),
        [
            ("openai/gpt-4o", "gpt-4o"),
            ("gpt-4o", "gpt-4o"),
            ("openrouter/meta/llama-3", "meta/llama-3"),
            ("openai/*", None),
            ("*", None),
        ],
    )
    def test_the_upstreams_name_for_a_model(self, canonical, model):
        target = compiled(ECHO, route("r", canonical)).snapshot.routes["ai/r"].targets[0]
        assert target.model == model


class TestConditions:
    def about(self, result: Compiled, kind: str, name: str) -> dict[str, str]:
        findings = result.by_object().get((kind, "ai", name), ())
        return {it.type: it.status for it in conditions(kind, findings)}

    def test_an_object_without_findings_is_well(self):
        result = compiled(*GOOD)
        assert result.findings == ()
        assert self.about(result, "Provider", "echo") == {
            "Accepted": "True",
            "ResolvedRefs": "True",
        }
        assert self.about(result, "Budget", "none") == {"Accepted": "True"}

    def test_a_warning_leaves_the_condition_true_and_is_told(self):
        finding = Finding("ApiKey", "ai", "a", 1, "Accepted", "Warning", Reason.NOT_ENFORCED,
                          "not enforced", "spec.limits")  # fmt: skip
        accepted, _ = conditions("ApiKey", [finding])
        assert (accepted.status, accepted.reason) == ("True", Reason.ACCEPTED)
        assert "spec.limits: not enforced" in accepted.message

    def test_a_message_fits_into_a_condition(self):
        finding = Finding("ApiKey", "ai", "a", 1, "Accepted", "Error", Reason.INVALID, "x" * 40_000)
        assert len(conditions("ApiKey", [finding])[0].message) <= 32768

    def test_findings_carry_the_generation_they_are_about(self):
        invalid = manifest("Provider", "p", {"type": "Mork"}, generation=7)
        lost = manifest("ModelRoute", "r", {"models": ["x"], "targets": [
            {"provider": {"name": "p"}}]}, generation=4)  # fmt: skip
        found = {it.name: it.generation for it in compiled(invalid, lost).findings}
        assert found == {"p": 7, "r": 4}


def test_shards_that_a_secret_cannot_hold_are_named():
    assert oversized({"config-0": b"x" * MAX_SHARD_BYTES}) == ()
    (message,) = oversized({"config-0": b"x" * (MAX_SHARD_BYTES + 1), "keys-1": b""})
    assert "config-0" in message


def test_ten_thousand_callers_compile_in_reasonable_time():
    inventory = Inventory()
    inventory.apply(ECHO)
    for number in range(1000):
        inventory.apply(route(f"r{number}", f"demo/m{number}", shareWith={"from": "All"}))
    for number in range(10_000):
        spec = {"allowedModels": [f"demo/m{number % 1000}"], "owner": f"team-{number % 50}"}
        inventory.apply(manifest("ApiKey", f"k{number}", spec, f"ns-{number % 200}"))
        key = f"sk-th-PLANTED-{random.getrandbits(64):016x}"
        inventory.apply(secret(f"k{number}", f"ns-{number % 200}", OPENAI_API_KEY=key))
    resources = inventory.resources()
    start = time.perf_counter()
    compiler = Compiler()
    result = compiler.compile(resources)
    whole = time.perf_counter() - start
    assert result.findings == ()
    assert result.snapshot.key_count() == 10_000
    changes = []
    for number in range(10):
        inventory.apply(manifest("ApiKey", "k7", {"owner": f"team-new-{number}"}, "ns-7"))
        resources = inventory.resources()
        start = time.perf_counter()
        compiler.compile(resources)
        changes.append(time.perf_counter() - start)
    once_more = sorted(changes)[len(changes) // 2]
    print(
        f"10,000 ApiKeys and 1,000 ModelRoutes compile in {whole:.2f} s, once more after one "
        f"change in {once_more * 1000:.0f} ms"
    )
    assert whole < 10
    assert once_more < whole / 2


@pytest.mark.parametrize(
    ("pattern", "warned"),
    [
        ("x/*", False),
        ("x/one", False),
        ("one", False),
        ("wild/anything", False),
        ("wild/*", True),
        ("auto", True),
        ("aut*", True),
        ("y/*", True),
        ("x/two", True),
    ],
)
def test_a_choice_among_nothing_is_warned_of(pattern: str, warned: bool) -> None:
    select = manifest("ModelRoute", "auto", {"models": ["auto"], "select": {"from": [pattern]}})
    result = compiled(ECHO, route("one", "x/one"), route("wild", "wild/*"), select)
    assert reasons(result) == ([("auto", "NoMatchingRoute")] if warned else [])
    assert all(it.path == "spec.select.from[0]" for it in result.findings)


class TestKnownModels:
    def test_a_provider_of_a_wildcard_carries_what_is_known_of_its_models(self):
        result = compiled(*GOOD, route("wild", "openai/*", provider="openai")).snapshot
        known = result.providers["ai/openai"].known
        assert known["gpt-4o"].pricing.input == "2.5"
        assert known["gpt-4o"].context_window == 128_000
        assert "gpt-*" in result.routes["ai/wild"].families
        assert max(map(len, shards(result).values())) < 20_000

    def test_its_prices_are_those_of_the_day(self):
        provider = manifest("Provider", "zai", {"type": "OpenAI", "baseURL": "http://z.ai.svc/v1"})
        inventory = Inventory()
        for it in (provider, route("r", "zhipuai/glm-5.3-flash", provider="zai")):
            inventory.apply(it)
        for day, price in ((date(2026, 9, 9), "0.055"), (date(2026, 9, 10), "0.11")):
            snapshot = compile_snapshot(inventory.resources(), day).snapshot
            (target,) = snapshot.routes["ai/r"].targets
            assert target.pricing is not None and target.pricing.input == price

    def test_without_an_input_price_an_answer_has_no_cost_and_the_route_is_warned_once(self):
        provider = manifest("Provider", "vllm", {"type": "OpenAI", "baseURL": "http://v.svc/v1"})
        target = {"provider": {"name": "vllm"}, "pricing": {"output": "1"}}
        spec = {"models": ["llama3"], "targets": [target]}
        (finding,) = compiled(provider, manifest("ModelRoute", "r", spec)).findings
        assert finding.reason == Reason.UNKNOWN_PRICE
        assert "llama3" in finding.message and "spec.targets[].pricing" in finding.message

    def test_tiers_are_put_in_order(self):
        tiers = [{"above": 200, "input": "3"}, {"above": 100, "input": "2"}]
        target = {"provider": {"name": "echo"}, "pricing": {"input": "1", "tiers": tiers}}
        spec = {"models": ["x"], "targets": [target]}
        (found,) = compiled(ECHO, manifest("ModelRoute", "r", spec)).snapshot.routes["ai/r"].targets
        assert found.pricing is not None
        assert [it.above for it in found.pricing.tiers] == [100, 200]

    def test_without_a_wildcard_it_carries_nothing(self):
        assert compiled(*GOOD).snapshot.providers["ai/openai"].known == {}
