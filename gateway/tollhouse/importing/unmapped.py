"""Why settings of LiteLLM that were not carried over were not. Keyed by section and name."""

from collections.abc import Iterator, Mapping
from typing import Any

from tollhouse.importing import Remark

_TELEMETRY = "telemetry is OTLP and Prometheus; callbacks of single products are not run"
_REDIS = "counters are shared by `tollhouse serve --store`, and not by a setting of the resources"
_DATABASE = (
    "there is no database: keys, teams and users are ApiKeys and Budgets. What LiteLLM keeps in "
    "its database is not in this file; make an ApiKey for each key that callers hold, and put the "
    "key into its Secret to keep it"
)
_CACHE = "answers are not cached"
_GUARDS = "requests and answers are not inspected"
_PASSES = "unknown fields and parameters reach the provider as they came"

_WHY: Mapping[str, str] = {
    "guardrails": _GUARDS,
    "mcp_servers": "MCP servers are not proxied",
    "vector_store_registry": "vector stores are not proxied",
    "assistant_settings": "the assistants API is not proxied",
    "files_settings": "the files API is not proxied",
    "finetune_settings": "the fine-tuning API is not proxied",
    "callback_settings": _TELEMETRY,
    "environment_variables": "set them on the gateway's pods, if anything there reads them",
    "include": "import the included files too",
    "litellm_settings.callbacks": _TELEMETRY,
    "litellm_settings.success_callback": _TELEMETRY,
    "litellm_settings.failure_callback": _TELEMETRY,
    "litellm_settings.service_callback": _TELEMETRY,
    "litellm_settings.turn_off_message_logging": "messages are never logged",
    "litellm_settings.set_verbose": "`tollhouse serve --log-level` is the gateway's own",
    "litellm_settings.json_logs": "`tollhouse serve --log-format` is the gateway's own",
    "litellm_settings.cache": _CACHE,
    "litellm_settings.cache_params": _CACHE,
    "litellm_settings.context_window_fallbacks": "a prompt that is too long is the caller's 400; a "
    "route with `select` passes over models whose context window is too small",
    "litellm_settings.content_policy_fallbacks": "a refusal by content policy is passed on",
    "litellm_settings.modify_params": _PASSES,
    "litellm_settings.ssl_verify": "certificates are always checked; give a Provider `tls.caRef`",
    "litellm_settings.max_end_user_budget": "budgets are per ApiKey or group of ApiKeys",
    "litellm_settings.default_team_settings": _DATABASE,
    "litellm_settings.upperbound_key_generate_params": "there is no endpoint that makes keys; who "
    "may make ApiKeys is for the cluster's RBAC",
    "router_settings.routing_strategy_args": "there is one strategy with no arguments: by weight",
    "router_settings.context_window_fallbacks": "see litellm_settings.context_window_fallbacks: a "
    "prompt that is too long is the caller's 400",
    "router_settings.content_policy_fallbacks": "a refusal by content policy is passed on",
    "router_settings.enable_pre_call_checks": "only a route with `select` looks at what fits",
    "router_settings.retry_policy": "retries are by route, in `retries.retryOn`",
    "router_settings.model_group_retry_policy": "retries are by route, in `retries.retryOn`",
    "router_settings.allowed_fails_policy": "health is counted per Provider, over all errors",
    "router_settings.retry_after": "the provider's `retry-after` is kept to by itself",
    "router_settings.redis_host": _REDIS,
    "router_settings.redis_port": _REDIS,
    "router_settings.redis_password": _REDIS,
    "router_settings.redis_url": _REDIS,
    "router_settings.cache_responses": _CACHE,
    "general_settings.database_url": _DATABASE,
    "general_settings.database_connection_pool_limit": "there is no database",
    "general_settings.store_model_in_db": "there is no database: models are ModelRoutes",
    "general_settings.alerting": "alerts are made from metrics",
    "general_settings.alerting_threshold": "alerts are made from metrics",
    "general_settings.alert_types": "alerts are made from metrics",
    "general_settings.custom_auth": "callers are known by their ApiKeys alone",
    "general_settings.enable_jwt_auth": "callers are known by their ApiKeys alone",
    "general_settings.litellm_jwtauth": "callers are known by their ApiKeys alone",
    "general_settings.pass_through_endpoints": "docs/endpoints.md lists the paths that are served",
    "general_settings.allowed_routes": "each path is served to every key",
    "general_settings.max_parallel_requests": "give ApiKeys a limit `concurrent`",
    "general_settings.global_max_parallel_requests": "give Providers `maxConcurrent`, per pod",
    "general_settings.key_management_system": "keys are in Secrets; let an operator of your secret "
    "manager write those",
    "general_settings.key_management_settings": "keys are in Secrets",
    "general_settings.proxy_batch_write_at": "there is no database",
    "general_settings.disable_spend_logs": "there is no database",
    "general_settings.background_health_checks": "health is judged by the requests themselves",
    "general_settings.health_check_interval": "health is judged by the requests themselves",
    "general_settings.ui_access_mode": "there is no user interface",
    "general_settings.salt_key": "there is no database",
}


def unmapped(section: str, given: Mapping[str, Any], known: frozenset[str]) -> Iterator[Remark]:
    """A remark for each setting of a section that the import did not look at."""
    for name in given:
        if name in known:
            continue
        path = f"{section}.{name}" if section else name
        yield Remark("no equivalent", path, _WHY.get(path, "nothing here does the same"))
