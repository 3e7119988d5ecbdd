"""Specs that must be taken, for every kind; and what a case is.

``tests/unit/test_resources.py`` tries them with ``parse``, ``tests/integration/test_crds.py`` with
the real API server: both must agree on each. The refused ones are in ``refused_upstreams`` and
``refused_callers``: there both must tell the person what to do.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Spec = Mapping[str, Any]


@dataclass(frozen=True)
class Good:
    name: str
    kind: str
    spec: Spec


@dataclass(frozen=True)
class Bad:
    """``path`` is where the problem is; ``message`` is what ``parse`` says.

    ``server`` is what the API server says, where that is not a rule with the same message.
    """

    name: str
    kind: str
    spec: Spec
    path: str
    message: str
    server: str | None = None


OPENAI: Spec = {"type": "OpenAI", "credentials": {"secretRef": {"name": "openai"}}}
TARGETS = [{"provider": {"name": "openai"}}]
ROUTE: Spec = {"models": ["openai/gpt-4o"], "targets": TARGETS}
POLICY_LIMIT: Spec = {"name": "burst", "requests": 600, "per": "Minute"}
POLICY: Spec = {"targetRefs": [{"kind": "ModelRoute", "name": "gpt-4o"}], "limits": [POLICY_LIMIT]}
BUDGET: Spec = {"selector": {"matchLabels": {"team": "payments"}}, "amount": "1000"}

GOOD = (
    Good("openai", "Provider", OPENAI),
    Good("openai without a key", "Provider", {"type": "OpenAI", "baseURL": "http://vllm:8000/v1"}),
    Good(
        "everything",
        "Provider",
        {
            "type": "OpenAI",
            "baseURL": "https://api.openai.com/v1",
            "credentials": {"secretRef": {"name": "openai", "key": "api-key"}},
            "headers": {"OpenAI-Organization": "org-1"},
            "timeouts": {"connect": "5s", "firstByte": "60s", "idle": "60s", "total": "10m"},
            "maxConcurrent": 500,
            "health": {"consecutiveFailures": 5, "cooldown": "30s"},
            "tls": {"caRef": {"kind": "ConfigMap", "name": "corp-ca"}},
        },
    ),
    Good("service", "Provider", {"type": "OpenAI", "serviceRef": {"name": "vllm", "port": 8000}}),
    Good(
        "bedrock",
        "Provider",
        {
            "type": "Bedrock",
            "credentials": {
                "aws": {"region": "eu-central-1", "roleARN": "arn:aws:iam::123456789012:role/llm"}
            },
        },
    ),
    Good(
        "vertex",
        "Provider",
        {"type": "VertexAI", "credentials": {"gcp": {"project": "p", "location": "global"}}},
    ),
    Good(
        "azure",
        "Provider",
        {
            "type": "AzureOpenAI",
            "baseURL": "https://eu.openai.azure.com",
            "credentials": {"azure": {"apiVersion": "2024-10-21"}, "secretRef": {"name": "az"}},
        },
    ),
    Good("own responses", "Provider", {"type": "OpenAI", "responses": "Native"}),
    Good("mock", "Provider", {"type": "Mock"}),
    Good(
        "mock script",
        "Provider",
        {
            "type": "Mock",
            "mock": {
                "reply": "Text",
                "text": "hello",
                "reasoning": "hm",
                "toolCalls": [{"name": "weather", "arguments": '{"city": "Paris"}'}],
                "images": ["data:image/png;base64,AA=="],
                "chunks": 3,
                "firstByteDelay": "0s",
                "chunkDelay": "10ms",
                "failWith": {"status": 503, "body": "busy", "everyNth": 3, "afterChunks": 0},
                "usage": {"promptTokens": 0, "completionTokens": 5},
            },
        },
    ),
    Good("route", "ModelRoute", ROUTE),
    Good(
        "everything",
        "ModelRoute",
        {
            "models": ["openai/gpt-4o", "gpt-4o", "*"],
            "targets": [
                {
                    "provider": {"name": "openai"},
                    "model": "gpt-4o",
                    "weight": 90,
                    "priority": 0,
                    "pricing": {
                        "input": "2.50",
                        "cachedInput": "1.25",
                        "cacheWrite": "3",
                        "cacheWriteHour": "5",
                        "output": "10.00",
                        "reasoning": "12",
                        "inputAudio": "40",
                        "cachedAudio": "20",
                        "outputAudio": "80",
                        "inputImage": "5",
                        "cachedImage": "2",
                        "outputImage": "40",
                        "webSearch": "0.01",
                        "request": "0.005",
                        "tiers": [{"above": 200000, "input": "5", "output": "15"}],
                    },
                    "webSearch": True,
                },
                {"provider": {"name": "azure-eu"}, "weight": 0},
                {"provider": {"name": "openrouter"}, "priority": 1},
            ],
            "retries": {
                "attempts": 2,
                "backoff": "0s",
                "retryOn": ["Connect", "Timeout", "429", "5xx"],
            },
            "timeouts": {"firstByte": "1h30m"},
            "parameters": {
                "defaults": {"temperature": 0.2, "stop": ["a", None], "deep": {"er": [1, True]}},
                "overrides": {},
                "maxTokens": 8192,
                "unsupported": "Reject",
            },
            "capabilities": {"vision": True, "contextWindow": 128000},
            "free": False,
            "strict": True,
            "shareWith": {"from": "Selector", "selector": {"matchLabels": {"llm": "yes"}}},
        },
    ),
    Good(
        "expressions",
        "ModelRoute",
        {
            **ROUTE,
            "shareWith": {
                "from": "Selector",
                "selector": {
                    "matchExpressions": [
                        {"key": "team", "operator": "In", "values": ["a", "b"]},
                        {"key": "llm", "operator": "Exists"},
                    ]
                },
            },
        },
    ),
    Good("a tag that is no effort", "ModelRoute", {**ROUTE, "models": ["llama3:8b"]}),
    Good(
        "select",
        "ModelRoute",
        {"models": ["auto"], "select": {"from": ["openai/*", "google/*"], "by": "Price"}},
    ),
    Good("nothing said", "ApiKey", {}),
    Good(
        "everything",
        "ApiKey",
        {
            "owner": "payments@shop",
            "secretName": "checkout-llm",
            "allowedModels": ["openai/*", "gpt-4o"],
            "modelAliases": {"fast": "openai/gpt-4o-mini"},
            "maxTokens": {"openai/gpt-4o": 4096, "*": 8192},
            "limits": [
                {"requests": 60, "per": "Minute"},
                {"tokens": 100000, "per": "Minute"},
                {"concurrent": 8},
            ],
            "budget": {"amount": "50.00", "period": "Month", "timeZone": "Europe/Paris"},
            "expiresAt": "2027-01-01T00:00:00Z",
            "rotation": {"every": "720h", "overlap": "0s"},
            "disabled": False,
            "tags": {"team": "payments"},
        },
    ),
    Good("offset", "ApiKey", {"expiresAt": "2027-01-01T00:00:00.5+02:00"}),
    Good("nothing allowed", "ApiKey", {"allowedModels": []}),
    Good("policy", "RateLimitPolicy", POLICY),
    Good(
        "everything",
        "RateLimitPolicy",
        {
            "selector": {"kind": "ApiKey", "matchLabels": {"tier": "free"}},
            "limits": [
                {"name": "burst", "requests": 600, "per": "Minute", "scope": "Shared"},
                {"name": "each", "tokens": 200000, "per": "Hour", "scope": "Each"},
                {"name": "end-user", "requests": 10, "per": "Minute", "scope": "User"},
                {"name": "big", "outputTokens": 50000, "per": "Day", "models": ["openai/o*"]},
                {"name": "small", "inputTokens": 1, "per": "Second"},
                {"name": "at-once", "concurrent": 8},
            ],
            "onStoreFailure": "Deny",
        },
    ),
    Good("budget", "Budget", BUDGET),
    Good(
        "everything",
        "Budget",
        {
            **BUDGET,
            "period": "Week",
            "timeZone": "UTC",
            "warnAt": [50, 80],
            "onExceeded": "Reject",
        },
    ),
    Good("every key", "Budget", {**BUDGET, "selector": {}}),
)


def manifest(kind: str, spec: Spec, name: str = "example") -> dict[str, Any]:
    """A whole manifest around a spec."""
    return {
        "apiVersion": "tollhouse.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": spec,
    }
