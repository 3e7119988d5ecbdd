"""What ``parse`` takes, what it refuses, and what it says then."""

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
import yaml

from support import refused_callers, refused_upstreams
from support.resource_cases import GOOD, Bad, Good, manifest
from tollhouse.resources import (
    ApiKey,
    LabelSelector,
    ModelRoute,
    Problem,
    Provider,
    ResourceError,
    dotted,
    parse,
    seconds,
)

BAD = (*refused_upstreams.REFUSED, *refused_callers.REFUSED)


def _refusal(document: dict) -> tuple[Problem, ...]:
    with pytest.raises(ResourceError) as caught:
        parse(document)
    return caught.value.problems


class TestCases:
    @pytest.mark.parametrize("case", GOOD, ids=lambda case: f"{case.kind}: {case.name}")
    def test_takes(self, case: Good):
        resource = parse(manifest(case.kind, case.spec))
        assert resource.kind == case.kind
        assert resource.ref == ("default", "example")

    @pytest.mark.parametrize("case", BAD, ids=lambda case: f"{case.kind}: {case.name}")
    def test_refuses_and_says_where_and_what_to_do(self, case: Bad):
        (problem,) = _refusal(manifest(case.kind, case.spec))
        assert dotted(problem.path) == case.path
        assert case.message in problem.message

    @pytest.mark.parametrize("case", BAD, ids=lambda case: f"{case.kind}: {case.name}")
    def test_never_shows_a_value(self, case: Bad):
        for problem in _refusal(manifest(case.kind, case.spec)):
            assert "PLANTED" not in str(problem)


class TestWhatOnlyPythonChecks:
    """The operator says these in status, because CEL cannot."""

    def test_an_unknown_time_zone(self):
        spec = {"budget": {"amount": "50", "timeZone": "Europe/Pariss"}}
        (problem,) = _refusal(manifest("ApiKey", spec))
        assert dotted(problem.path) == "spec.budget.timeZone"
        assert "is no IANA time zone" in problem.message

    def test_a_header_name_that_http_does_not_know(self):
        spec = {"type": "OpenAI", "headers": {"X Team": "a"}}
        (problem,) = _refusal(manifest("Provider", spec))
        assert "header names of letters, digits and hyphens" in problem.message


class TestProblems:
    def test_all_of_them_are_found_at_once(self):
        spec = {
            "models": ["a", "b c"],
            "targets": [{"provider": {"nam": "x"}, "weight": -1}],
            "retries": {"attempts": "2"},
        }
        assert {dotted(problem.path) for problem in _refusal(manifest("ModelRoute", spec))} == {
            "spec.models[1]",
            "spec.targets[0].provider.name",
            "spec.targets[0].provider.nam",
            "spec.targets[0].weight",
            "spec.retries.attempts",
        }

    def test_the_error_prints_as_a_sentence_each(self):
        with pytest.raises(ResourceError, match=r"^spec\.type: is required$"):
            parse(manifest("Provider", {}))

    def test_an_unknown_kind_lists_the_known(self):
        (problem,) = _refusal({"apiVersion": "tollhouse.dev/v1alpha1", "kind": "Route"})
        assert problem.path == ("kind",)
        assert "Provider, ModelRoute, ApiKey, RateLimitPolicy, Budget" in problem.message

    def test_another_version_is_not_read_as_this_one(self):
        document = manifest("ApiKey", {}) | {"apiVersion": "tollhouse.dev/v1"}
        assert _refusal(document) == (Problem(("apiVersion",), "must be tollhouse.dev/v1alpha1"),)

    def test_a_misspelt_spec(self):
        document = {**manifest("ApiKey", {}), "sepc": {}}
        (problem,) = _refusal(document)
        assert problem.message == 'unknown field "sepc"; did you mean "spec"?'

    def test_no_spec_at_all(self):
        document = manifest("ModelRoute", {})
        del document["spec"]
        assert _refusal(document) == (Problem(("spec",), "is required"),)

    def test_no_name(self):
        document = manifest("ApiKey", {}) | {"metadata": {}}
        assert _refusal(document) == (Problem(("metadata", "name"), "is required"),)

    @pytest.mark.parametrize("spec", ["text", ["list"], 5, None])
    def test_a_spec_that_is_no_map(self, spec):
        (problem,) = _refusal(manifest("Provider", spec))
        assert problem == Problem(("spec",), "must be a map of fields")

    def test_what_json_cannot_hold(self):
        endless: dict = {}
        endless["again"] = endless
        spec = {"models": ["a"], "targets": [], "parameters": {"defaults": endless}}
        (problem,) = _refusal(manifest("ModelRoute", spec))
        assert "JSON" in problem.message


class TestValues:
    def test_defaults_are_those_of_the_design(self):
        provider = parse(manifest("Provider", {"type": "OpenAI"}))
        assert isinstance(provider, Provider)
        assert provider.spec.timeouts.connect == "5s"
        assert provider.spec.health.consecutive_failures == 5
        route = parse(
            manifest("ModelRoute", {"models": ["a"], "targets": [{"provider": {"name": "x"}}]})
        )
        assert isinstance(route, ModelRoute)
        assert route.spec.retries.retry_on == ("Connect", "Timeout", "429", "5xx")
        assert route.spec.share_with.from_ == "Same"
        assert route.spec.parameters.unsupported == "Drop"
        assert route.spec.targets is not None
        assert (route.spec.targets[0].weight, route.spec.targets[0].priority) == (1, 0)
        key = parse(manifest("ApiKey", {}))
        assert isinstance(key, ApiKey)
        assert key.spec.allowed_models is None

    def test_metadata_of_the_api_server(self):
        document = manifest("ApiKey", {})
        document["metadata"] = {
            "name": "checkout",
            "namespace": "shop",
            "uid": "u-1",
            "generation": 3,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "deletionTimestamp": None,
            "labels": {"team": "payments"},
            "managedFields": [{"manager": "kubectl"}],
            "resourceVersion": "12",
        }
        metadata = parse({**document, "status": {"prefix": "sk-th-Ab12"}}).metadata
        assert (metadata.namespace, metadata.name, metadata.uid) == ("shop", "checkout", "u-1")
        assert metadata.generation == 3
        assert metadata.creation_timestamp == datetime(2026, 1, 1, tzinfo=UTC)
        assert metadata.labels == {"team": "payments"}
        assert metadata.deletion_timestamp is None

    @pytest.mark.parametrize("text", ["2027-01-01T00:00:00+02:00", '"2027-01-01T00:00:00+02:00"'])
    def test_a_time_in_yaml_with_and_without_quotes(self, text: str):
        key = parse(manifest("ApiKey", yaml.safe_load(f"expiresAt: {text}")))
        assert isinstance(key, ApiKey)
        assert key.spec.expires_at == datetime(2027, 1, 1, tzinfo=timezone(timedelta(hours=2)))

    def test_free_form_parameters_stay_as_they_are(self):
        defaults = {"temperature": 0.2, "stop": ["a"], "nested": {"true": True, "none": None}}
        spec = {"models": ["a"], "targets": [{"provider": {"name": "x"}}]}
        route = parse(manifest("ModelRoute", {**spec, "parameters": {"defaults": defaults}}))
        assert isinstance(route, ModelRoute)
        assert route.spec.parameters.defaults == defaults

    @pytest.mark.parametrize(
        ("duration", "expected"),
        [
            ("1m30s", 90.0),
            ("250ms", 0.25),
            ("720h", 2_592_000.0),
            ("0s", 0.0),
            ("1h1m1s1ms", 3661.001),
        ],
    )
    def test_seconds(self, duration: str, expected: float):
        assert seconds(duration) == pytest.approx(expected)

    def test_resources_cannot_be_changed(self):
        key = parse(manifest("ApiKey", {"owner": "me"}))
        assert isinstance(key, ApiKey)
        with pytest.raises(ValueError, match="frozen"):
            key.spec.owner = "you"


class TestLabelSelector:
    @pytest.mark.parametrize(
        ("selector", "matches"),
        [
            ({}, True),
            ({"matchLabels": {"team": "payments"}}, True),
            ({"matchLabels": {"team": "payments", "tier": "paid"}}, False),
            ({"matchLabels": {"region": "eu"}}, False),
            ({"matchExpressions": [{"key": "team", "operator": "Exists"}]}, True),
            ({"matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]}, False),
            ({"matchExpressions": [{"key": "tier", "operator": "In", "values": ["paid"]}]}, False),
            (
                {"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["paid"]}]},
                True,
            ),
            ({"matchExpressions": [{"key": "other", "operator": "NotIn", "values": ["x"]}]}, True),
        ],
    )
    def test_selects_as_kubernetes_does(self, selector, matches):
        found = LabelSelector.model_validate_json(json.dumps(selector))
        assert found.matches({"team": "payments", "tier": "free"}) is matches
