"""``tollhouse explain``: what a request would meet, and why what was not chosen was passed over."""

import io
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from support import gateway as g
from support.gateway import Manifest
from tollhouse.errors import ConfigError
from tollhouse.explain import Explanation, View, explain, of_folder, render
from tollhouse.snapshot import Credential

NOW = 1_800_000_000.0
OTHER_KEYS = {
    name: f"sk-brought-PLANTED-{name}-0123456789"
    for name in ("bare", "disabled", "expired", "other", "listed")
}


def labelled(made: Manifest, **labels: str) -> Manifest:
    return {**made, "metadata": {**made["metadata"], "labels": labels}}


def everything() -> list[Manifest]:
    shopper, shopper_secret = g.caller(
        "checkout",
        namespace="shop",
        owner="payments@shop",
        modelAliases={"fast": "openai/gpt-4o-mini"},
        maxTokens={"openai/*": 4096},
        limits=[{"requests": 60, "per": "Minute"}, {"concurrent": 8}],
        budget={"amount": "50.00", "period": "Month", "timeZone": "Europe/Paris"},
    )
    all_share = {"shareWith": {"from": "All"}}
    return [
        g.mock("first"),
        g.mock("second"),
        g.openai_compatible("locked", "https://upstream.example/v1")[0],
        g.route(
            "gpt-4o",
            ["openai/gpt-4o", "gpt-4o"],
            {"provider": {"name": "first"}, "weight": 90},
            {"provider": {"name": "second"}, "weight": 10},
            {"provider": {"name": "locked"}, "priority": 1, "model": "backup"},
            {"provider": {"name": "second"}, "priority": 2, "model": "last"},
            parameters={"maxTokens": 8192},
            **all_share,
        ),
        g.route(
            "mini", ["openai/gpt-4o-mini"], "first", capabilities={"vision": False}, **all_share
        ),
        g.route("rest", ["openai/*"], "second", capabilities={"tools": False}, **all_share),
        g.route("private", ["openai/secret", "gpt-secret"], "first"),
        g.route("thief", ["gpt-4o"], "first", **all_share),
        g.route("empty", ["empty"], "nowhere", **all_share),
        g.manifest(
            "ModelRoute",
            "auto",
            {
                "models": ["auto"],
                "select": {"from": ["openai/gpt-4o", "openai/gpt-4o-mini"], "by": "Weight"},
                "shareWith": {"from": "All"},
            },
        ),
        labelled(shopper, team="payments"),
        shopper_secret,
        *g.caller("disabled", OTHER_KEYS["disabled"], "shop", disabled=True),
        *g.caller("expired", OTHER_KEYS["expired"], "shop", expiresAt="2026-01-01T00:00:00Z"),
        *g.caller("listed", OTHER_KEYS["listed"], "shop", allowedModels=["openai/gpt-4o-mini"]),
        g.manifest("ApiKey", "keyless", {}, "shop"),
        g.manifest(
            "RateLimitPolicy",
            "by-route",
            {
                "targetRefs": [{"kind": "ModelRoute", "name": "gpt-4o"}],
                "limits": [
                    {"name": "burst", "requests": 600, "per": "Minute", "scope": "Shared"},
                    {"name": "o", "outputTokens": 5, "per": "Day", "models": ["openai/o*"]},
                ],
                "onStoreFailure": "Deny",
            },
        ),
        g.manifest(
            "RateLimitPolicy",
            "elsewhere",
            {
                "selector": {"kind": "ApiKey", "matchLabels": {"team": "payments"}},
                "limits": [{"name": "never", "requests": 1, "per": "Day"}],
            },
        ),
        g.manifest(
            "Budget",
            "payments",
            {"selector": {"matchLabels": {"team": "payments"}}, "amount": "1000"},
            "shop",
        ),
        g.manifest("Budget", "others", {"selector": {"matchLabels": {"team": "x"}}, "amount": "1"},
                   "shop"),
    ]  # fmt: skip


@pytest.fixture
def view(tmp_path: Path) -> View:
    g.write(tmp_path, everything())
    return of_folder(tmp_path, {})


def asked(view: View, model: str | None, key: str = "shop/checkout", **more: Any) -> Explanation:
    found = explain(view, api_key=key, model=model, now=NOW, **more)
    assert "PLANTED" not in found.to_json()
    assert "PLANTED" not in printed(found)
    return found


def printed(found: Explanation) -> str:
    out = io.StringIO()
    render(found, Console(file=out, width=40, force_terminal=False))
    return out.getvalue()


def passed_over(found: Explanation) -> dict[str, str]:
    return {it.what: it.why for it in found.passed_over}


class TestServed:
    def test_the_targets_in_the_order_of_tries(self, view: View) -> None:
        found = asked(view, "gpt-4o")
        assert found.refusal is None
        assert (found.route, found.model, found.max_tokens) == ("ai/gpt-4o", "openai/gpt-4o", 4096)
        assert [(it.priority, it.provider, it.model, it.share) for it in found.targets] == [
            (0, "ai/first", "gpt-4o", 0.9),
            (0, "ai/second", "gpt-4o", 0.1),
            (2, "ai/second", "last", 1.0),
        ]

    def test_an_alias_and_an_effort_are_told(self, view: View) -> None:
        found = asked(view, "fast:high")
        assert found.caller is not None
        assert (found.effort, found.caller.alias) == ("high", "openai/gpt-4o-mini")
        assert found.route == "ai/mini"

    def test_limits_and_budgets_by_whom_and_how_much(self, view: View) -> None:
        found = asked(view, "gpt-4o")
        assert [(it.source, it.says) for it in found.limits] == [
            (
                "ApiKey shop/checkout",
                "requests-per-minute: 60 requests per minute; without the counters: Local",
            ),
            (
                "ApiKey shop/checkout",
                "concurrent: 8 requests at once; without the counters: Local",
            ),
            (
                "RateLimitPolicy ai/by-route",
                "burst: 600 requests per minute; without the counters: Deny",
            ),
        ]
        assert [(it.source, it.says) for it in found.budgets] == [
            ("ApiKey shop/checkout", "50 USD per Month (Europe/Paris), then Reject"),
            ("Budget shop/payments", "1000 USD per Month (UTC), then Reject"),
        ]

    def test_a_target_without_its_secret_is_passed_over(self, view: View) -> None:
        why = passed_over(asked(view, "gpt-4o"))["target 2, Provider ai/locked"]
        assert "locked" in why
        assert why.startswith("ProviderNotReady")

    def test_a_younger_claim_and_a_shorter_name_are_passed_over(self, view: View) -> None:
        assert (
            "claimed by the ModelRoute ai/gpt-4o"
            in (passed_over(asked(view, "gpt-4o"))["ModelRoute ai/thief"])
        )
        why = passed_over(asked(view, "openai/gpt-4o"))["ModelRoute ai/rest"]
        assert why == "another route has the name more exactly"

    def test_a_presented_key_says_the_same(self, view: View) -> None:
        by_key = explain(view, presented=Credential(g.KEY), model="gpt-4o", now=NOW)
        assert asdict(by_key) == asdict(asked(view, "gpt-4o"))


class TestChoice:
    def body(self, **more: Any) -> bytes:
        image = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
        messages = [{"role": "user", "content": [image]}]
        return json.dumps({"model": "auto", "messages": messages, **more}).encode()

    def test_what_lacks_what_the_request_needs_is_passed_over(self, view: View) -> None:
        found = asked(view, None, body=self.body())
        assert (found.requested, found.route) == ("auto", "ai/gpt-4o")
        why = passed_over(found)["openai/gpt-4o-mini (ModelRoute ai/mini)"]
        assert why == "the request needs what it lacks: vision"
        assert "ModelRoute ai/auto chooses by Weight" in found.notes

    def test_what_the_key_may_not_use_is_passed_over(self, view: View) -> None:
        found = asked(view, "auto", "shop/listed")
        assert found.refusal is not None
        assert found.refusal.code == "model_not_allowed"

    def test_a_body_that_is_refused_is_told_with_its_field(self, view: View) -> None:
        found = asked(view, "gpt-4o", body=self.body(temperature=9))
        assert found.refusal is not None
        assert (found.refusal.status, found.refusal.code) == (400, "invalid_value")
        assert "temperature" in found.refusal.message


class TestRefused:
    @pytest.mark.parametrize(
        ("model", "key", "status", "code", "words"),
        [
            ("gpt-4", "shop/checkout", 404, "model_not_found", "Did you mean gpt-4o"),
            ("gpt-secret", "shop/checkout", 404, "model_not_found", "No route serves"),
            ("gpt-4o", "shop/listed", 403, "model_not_allowed", "spec.allowedModels"),
            ("gpt-4o", "shop/disabled", 401, "disabled_api_key", "spec.disabled"),
            ("gpt-4o", "shop/expired", 401, "expired_api_key", "spec.expiresAt"),
            ("gpt-4o", "shop/keyless", 401, "invalid_api_key", "Secret shop/keyless"),
            ("empty", "shop/checkout", 503, "no_healthy_target", "ai/empty"),
        ],
    )
    def test_with_what_the_caller_would_be_told(
        self, view: View, model: str, key: str, status: int, code: str, words: str
    ) -> None:
        found = asked(view, model, key)
        assert found.refusal is not None
        assert (found.refusal.status, found.refusal.code) == (status, code)
        assert words in found.refusal.message
        assert found.exit_code == 1
        assert f"refused with {status} {code}" in printed(found)

    def test_a_route_that_is_not_shared_says_whom_it_does_not_name(self, view: View) -> None:
        why = passed_over(asked(view, "gpt-secret"))["ModelRoute ai/private"]
        assert why == "its shareWith does not name the namespace shop"

    def test_a_route_that_the_key_may_not_use_says_so(self, view: View) -> None:
        why = passed_over(asked(view, "gpt-4o", "shop/listed"))["ModelRoute ai/gpt-4o"]
        assert why == "it is not in the key's allowedModels"

    def test_an_unknown_api_key_is_no_question(self, view: View) -> None:
        with pytest.raises(ConfigError, match="there is no ApiKey shop/nobody"):
            asked(view, "gpt-4o", "shop/nobody")

    def test_no_model_is_no_question(self, view: View) -> None:
        with pytest.raises(ConfigError, match="give --model"):
            asked(view, None)


class TestCommand:
    def run(self, *arguments: str | Path, **environ: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "tollhouse", "explain", *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False,
            env=os.environ | environ,
        )  # fmt: skip

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        g.write(tmp_path, g.mock(), g.route("base", ["base"], "mock"), g.caller())
        return tmp_path

    def test_the_exit_status_says_whether_it_would_be_served(self, folder: Path) -> None:
        served = self.run(folder, "--key", "ai/caller", "--model", "base", "-o", "json")
        assert (served.returncode, served.stderr) == (0, "")
        assert json.loads(served.stdout)["route"] == "ai/base"
        refused = self.run(folder, "--key", "ai/caller", "--model", "other")
        assert refused.returncode == 1
        assert "refused with 404 model_not_found" in refused.stdout

    def test_a_key_comes_from_a_variable_and_is_not_printed(self, folder: Path) -> None:
        done = self.run(folder, "--key-env", "CALLER", "--model", "base", CALLER=g.KEY)
        assert done.returncode == 0
        assert "ai/caller" in done.stdout
        assert g.KEY not in done.stdout + done.stderr

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ((".", "--model", "m"), "say whose request it is"),
            (("--key", "a/b", "--model", "m"), "give either a folder, or --cluster"),
            ((".", "--key-env", "EMPTY", "--model", "m"), "the variable EMPTY is empty"),
            (("nowhere", "--key", "a/b", "--model", "m"), "there is no folder nowhere"),
            ((".", "--key", "a/b", "--file", "nowhere.json"), "nowhere.json cannot be read"),
            (("--cluster", "--key", "a/b", "--model", "m"), "kubectl is not on the PATH"),
        ],
    )
    def test_what_is_no_question_has_status_2(
        self, tmp_path: Path, arguments: tuple[str, ...], words: str
    ) -> None:
        done = self.run(*(str(tmp_path) if it == "." else it for it in arguments), PATH="")
        assert done.returncode == 2
        assert words in done.stderr
