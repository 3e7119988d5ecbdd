"""LiteLLM's ``config.yaml`` → custom resources. Pure: no I/O and no clock.

Source of the format: LiteLLM's pages "Proxy Config.yaml", "All settings", "Load balancing" and
"Fallbacks". Every setting is either carried over or in a remark; what LiteLLM keeps in its database
is in no file, and so not here.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from tollhouse.errors import ConfigError
from tollhouse.importing import Imported, Manifest, Remark, Wanted, resource
from tollhouse.importing.deployments import (
    Account,
    Deployment,
    host_word,
    number,
    read,
    variable_of,
    wanted,
)
from tollhouse.importing.unmapped import unmapped
from tollhouse.resources import ResourceError, parse
from tollhouse.snapshot import Credential

_SECTIONS = frozenset(
    {"model_list", "litellm_settings", "router_settings", "general_settings", "credential_list"}
)
_LITELLM = frozenset(
    {
        *("num_retries", "request_timeout", "fallbacks", "default_fallbacks", "allowed_fails"),
        *("drop_params", "max_budget", "budget_duration"),
    }
)
_ROUTER = frozenset(
    {
        *("routing_strategy", "num_retries", "timeout", "allowed_fails", "cooldown_time"),
        *("fallbacks", "default_fallbacks", "model_group_alias"),
    }
)
_GENERAL = frozenset({"master_key"})
_PERIODS = {
    **dict.fromkeys(("1d", "24h", "daily"), "Day"),
    **dict.fromkeys(("7d", "weekly"), "Week"),
    **dict.fromkeys(("30d", "1mo", "monthly"), "Month"),
}
_MODEL = re.compile(r"([^\s*]+\*?|\*)")
_EFFORT = re.compile(r":(minimal|low|medium|high|xhigh|max)$")
_MASTER = "litellm-master"
_SHORTEST_KEY = 16
_MOST_TARGETS = 32
_MOST_WEIGHT = 1_000_000


def litellm(config: str, namespace: str) -> Imported:
    """The resources of a configuration. Raises ConfigError when it cannot be read at all; no
    message quotes it."""
    return _Import(_load(config), namespace).run()


class _Import:
    def __init__(self, config: Mapping[str, Any], namespace: str) -> None:
        self._namespace = namespace
        self._config = config
        self._litellm = _section(config, "litellm_settings")
        self._router = _section(config, "router_settings")
        self._general = _section(config, "general_settings")
        self._remarks: list[Remark] = []
        self._secrets: list[Wanted] = []
        self._names: dict[Account, str] = {}
        self._providers: list[Manifest] = []

    def run(self) -> Imported:
        for section, given, known in (
            ("", self._config, _SECTIONS),
            ("litellm_settings", self._litellm, _LITELLM),
            ("router_settings", self._router, _ROUTER),
            ("general_settings", self._general, _GENERAL),
        ):
            self._remarks += unmapped(section, given, known)
        strategy = self._router.get("routing_strategy", "simple-shuffle")
        if strategy != "simple-shuffle":
            why = "targets of one priority are chosen by weight; `select` chooses among routes"
            self._remark("no equivalent", "router_settings.routing_strategy", why)
        groups = self._groups()
        routes, policies = self._routes(groups)
        keys = [*self._master_key(), *self._budget()]
        files = {
            "1-providers.yaml": self._valid(self._providers),
            "2-routes.yaml": self._valid(routes),
            "3-limits.yaml": self._valid(policies),
            "4-keys.yaml": self._valid(keys),
        }
        return Imported(self._namespace, files, tuple(self._secrets), tuple(self._remarks))

    def _groups(self) -> dict[str, list[Deployment]]:
        """The deployments by ``model_name``, in the order of the file, each with its Provider."""
        entries = self._config.get("model_list")
        credentials = {
            str(it.get("credential_name")): _section(it, "credential_values")
            for it in self._config.get("credential_list") or ()
            if isinstance(it, Mapping)
        }
        groups: dict[str, list[Deployment]] = {}
        for place, entry in enumerate(entries if isinstance(entries, list) else ()):
            path = f"model_list[{place}]"
            if not isinstance(entry, Mapping):
                self._remark("no equivalent", path, "it is not an object")
                continue
            deployment = read(entry, path, credentials, self._remarks)
            if deployment is None:
                continue
            name = deployment.group
            if not _MODEL.fullmatch(name) or len(name) > 256 or _EFFORT.search(name):
                why = "a model's name has no spaces, no * but at its end, and no effort suffix"
                self._remark("no equivalent", f"{path}.model_name", why)
                continue
            groups.setdefault(name, []).append(deployment)
            self._provider(deployment)
        return groups

    def _provider(self, deployment: Deployment) -> None:
        """The Provider of a deployment's account, unless it is there already."""
        account = deployment.account
        if account in self._names:
            return
        taken = set(self._names.values())
        vendor = _slug(account.vendor)
        host = host_word(deployment.spec)
        tries = [vendor, *([_slug(f"{vendor}-{host}")] if host else [])]
        tries += [f"{vendor}-{number}" for number in range(2, len(taken) + 3)]
        name = next(it for it in tries if it not in taken)
        self._names[account] = name
        spec = dict(deployment.spec)
        secret = wanted(name, account)
        if secret is not None:
            self._secrets.append(secret)
            spec["credentials"] = {**spec.get("credentials", {}), "secretRef": {"name": name}}
        health = self._health()
        if health:
            spec["health"] = health
        self._providers.append(resource("Provider", name, self._namespace, spec))

    def _health(self) -> dict[str, Any]:
        fails = self._router.get("allowed_fails", self._litellm.get("allowed_fails"))
        found: dict[str, Any] = {}
        if isinstance(fails, int) and 0 <= fails < 1000:
            found["consecutiveFailures"] = fails + 1
            why = "failures are counted in a row and per Provider, not per minute and deployment"
            self._remark("differs", "router_settings.allowed_fails", why)
        cooldown = self._seconds("router_settings.cooldown_time", self._router.get("cooldown_time"))
        return found | ({"cooldown": _duration(cooldown)} if cooldown else {})

    def _routes(
        self, groups: Mapping[str, list[Deployment]]
    ) -> tuple[list[Manifest], list[Manifest]]:
        aliases = self._aliases(groups)
        fallbacks = self._fallbacks(groups)
        own = {name: self._targets(deployments) for name, deployments in groups.items()}
        names: set[str] = set()
        routes: list[Manifest] = []
        policies: list[Manifest] = []
        for group, deployments in groups.items():
            name = _free(_slug(group), names)
            targets = [dict(it) for it in own[group]]
            for fallback in fallbacks.get(group, ()):
                self._fall_back(targets, own, fallback)
            if len(targets) > _MOST_TARGETS:
                why = f"a route has at most {_MOST_TARGETS} targets; the others are left out"
                self._remark("no equivalent", deployments[0].path, why)
            spec: dict[str, Any] = {
                "models": [group, *aliases.get(group, ())],
                "targets": targets[:_MOST_TARGETS],
                **self._behaviour(deployments),
                "shareWith": {"from": "All"},
            }
            routes.append(resource("ModelRoute", name, self._namespace, spec))
            limits = self._limits(deployments)
            if limits:
                target = {"kind": "ModelRoute", "name": name}
                policy = {"targetRefs": [target], "limits": limits}
                policies.append(resource("RateLimitPolicy", name, self._namespace, policy))
        return routes, policies

    def _targets(self, deployments: Sequence[Deployment]) -> list[Manifest]:
        """A group's own targets. A deployment's share is its weight, else its rpm or tpm."""
        shares: list[int | None] = [it.weight for it in deployments]
        if not any(share is not None for share in shares):
            for counts in ([it.rpm for it in deployments], [it.tpm for it in deployments]):
                if all(count is not None for count in counts):
                    shares = list(_scaled([count or 0 for count in counts]))
                    break
        orders = [it.order for it in deployments if it.order is not None]
        last = max(orders) + 1 if orders else 0
        targets: list[Manifest] = []
        for deployment, share in zip(deployments, shares, strict=True):
            target: Manifest = {"provider": {"name": self._names[deployment.account]}}
            if deployment.model is not None:
                target["model"] = deployment.model
            if share is not None and len(deployments) > 1:
                target["weight"] = share
            priority = min(deployment.order if deployment.order is not None else last, 1000)
            if priority:
                target["priority"] = priority
            if deployment.pricing:
                target["pricing"] = dict(deployment.pricing)
            targets.append(target)
        return targets

    def _fall_back(
        self, targets: list[Manifest], own: Mapping[str, list[Manifest]], fallback: str
    ) -> None:
        """Put another group's targets behind those there are."""
        behind = max(it.get("priority", 0) for it in targets) + 1
        group, matched = _serving(own, fallback)
        for theirs in own[group]:
            target = dict(theirs) | (
                {"model": matched} if matched and "model" not in theirs else {}
            )
            priority = min(behind + theirs.get("priority", 0), 1000)
            target["priority"] = priority
            same = (target["provider"], target.get("model"))
            if same not in [(it["provider"], it.get("model")) for it in targets]:
                targets.append(target)

    def _behaviour(self, deployments: Sequence[Deployment]) -> dict[str, Any]:
        """What a route says beside its names and targets, where its deployments agree on it."""
        found: dict[str, Any] = {}
        first = deployments[0].path
        retries = self._agreed(deployments, "retries", [it.retries for it in deployments])
        if retries is None:
            retries = self._router.get("num_retries", self._litellm.get("num_retries"))
        if isinstance(retries, int):
            found["retries"] = {"attempts": max(0, min(retries, 10))}
        total = self._agreed(deployments, "timeout", [it.timeout for it in deployments])
        if total is None:
            path, given = "router_settings.timeout", self._router.get("timeout")
            if given is None:
                path, given = (
                    "litellm_settings.request_timeout",
                    self._litellm.get("request_timeout"),
                )
            total = self._seconds(path, given)
        timeouts = {"total": _duration(total)} if total else {}
        quiet = [it.stream_timeout for it in deployments]
        head = self._agreed(deployments, "stream_timeout", quiet)
        if head:
            timeouts["firstByte"] = _duration(head)
        if timeouts:
            found["timeouts"] = timeouts
            why = "a route's timeouts.total bounds all attempts together, not each of them"
            if total:
                self._remark("differs", f"{first} (timeout)", why)
        defaults = self._common(deployments, "litellm_params", [it.defaults for it in deployments])
        if defaults:
            found["parameters"] = {"defaults": defaults}
        able = self._common(deployments, "model_info", [it.capabilities for it in deployments])
        if able:
            found["capabilities"] = able
        return found

    def _limits(self, deployments: Sequence[Deployment]) -> list[Manifest]:
        """Limits of the whole route: what its deployments may take together."""
        found: list[Manifest] = []
        for name, counted in (("rpm", "requests"), ("tpm", "tokens")):
            counts = [getattr(it, name) for it in deployments]
            if all(counts):
                limit = {"name": name, counted: sum(counts), "per": "Minute", "scope": "Shared"}
                found.append(limit)
                why = (
                    "it limits the route as a whole, whose callers get a 429; LiteLLM only passes "
                    "over the deployment"
                )
                self._remark("differs", f"{deployments[0].path} ({name})", why)
            elif any(counts):
                why = "only some deployments of this name have it, so it is no limit on the route"
                self._remark("no equivalent", f"{deployments[0].path} ({name})", why)
        return found

    def _aliases(self, groups: Mapping[str, object]) -> dict[str, list[str]]:
        """Further names of each group."""
        found: dict[str, list[str]] = {}
        taken = set(groups)
        for alias, meant in _section(self._router, "model_group_alias").items():
            path = f"router_settings.model_group_alias.{alias}"
            model = meant.get("model") if isinstance(meant, Mapping) else meant
            if model not in groups:
                self._remark("no equivalent", path, "model_list has no such model_name")
            elif alias in taken or not _MODEL.fullmatch(str(alias)) or _EFFORT.search(str(alias)):
                self._remark("no equivalent", path, "the name is taken, or is none that works here")
            else:
                taken.add(alias)
                found.setdefault(str(model), []).append(str(alias))
                if isinstance(meant, Mapping) and meant.get("hidden"):
                    self._remark("differs", path, "every name is listed at GET /v1/models")
        return found

    def _fallbacks(self, groups: Mapping[str, object]) -> dict[str, list[str]]:
        """By group, the names of the groups behind it, the default ones last."""
        found: dict[str, list[str]] = {}
        general: list[str] = []
        for section, given in (
            ("router_settings", self._router),
            ("litellm_settings", self._litellm),
        ):
            for place, entry in enumerate(_list(given.get("fallbacks"))):
                path = f"{section}.fallbacks[{place}]"
                for group, names in entry.items() if isinstance(entry, Mapping) else ():
                    known = self._known(groups, names, f"{path}.{group}")
                    if group == "*":
                        general += known
                    elif group in groups:
                        found.setdefault(str(group), []).extend(known)
                    else:
                        why = "model_list has no such model_name"
                        self._remark("no equivalent", f"{path}.{group}", why)
            path = f"{section}.default_fallbacks"
            general += self._known(groups, given.get("default_fallbacks"), path)
        for group in groups if general else ():
            found.setdefault(group, []).extend(it for it in general if it != group)
        if found:
            why = "the route's own parameters, retries and timeouts hold for its fallbacks too"
            self._remark("differs", "fallbacks", why)
        return found

    def _known(self, groups: Mapping[str, object], names: Any, path: str) -> list[str]:
        found: list[str] = []
        for name in _list(names):
            if isinstance(name, str) and _serving(groups, name)[0] in groups:
                found.append(name)
            else:
                self._remark("no equivalent", path, "model_list has no such model_name")
        return found

    def _master_key(self) -> list[Manifest]:
        given, path = self._general.get("master_key"), "general_settings.master_key"
        if given is None:
            why = "there is none, so LiteLLM lets everybody in; make an ApiKey for each caller"
            self._remark("do", path, why)
            return []
        variable = variable_of(given)
        value = Credential(str(given)) if variable is None else None
        if value is not None and len(value.value) < _SHORTEST_KEY:
            why = (
                f"it has fewer than {_SHORTEST_KEY} characters: callers need the new key that the "
            )
            self._remark("do", path, f"{why}operator writes into the Secret {_MASTER}")
            value = None
        else:
            said = f"${variable}" if variable else "the key"
            self._remark(
                "do", path,
                f"to keep it, make the Secret before the ApiKey: kubectl create secret generic "
                f'{_MASTER} -n {self._namespace} --from-literal=OPENAI_API_KEY="{said}"; without '
                "it the operator makes a new key. It calls models and administers nothing",
            )  # fmt: skip
        said = f"the-value-of-{variable}" if variable else "the-master-key"
        self._secrets.append(Wanted(_MASTER, "OPENAI_API_KEY", said, value, generated=True))
        return [resource("ApiKey", _MASTER, self._namespace, {"owner": "LiteLLM's master key"})]

    def _budget(self) -> list[Manifest]:
        given, path = self._litellm.get("max_budget"), "litellm_settings.max_budget"
        duration = self._litellm.get("budget_duration")
        if given is None:
            return []
        period = "Total" if duration is None else _PERIODS.get(str(duration))
        if period is None or isinstance(given, bool) or not isinstance(given, int | float):
            why = "a Budget is by day, week, month or in all, and its amount a number"
            self._remark("no equivalent", path, why)
            return []
        why = f"it holds for the ApiKeys of the namespace {self._namespace}, by calendar periods"
        self._remark("differs", path, why)
        spec = {"selector": {}, "amount": f"{given:.2f}", "period": period}
        return [resource("Budget", "litellm", self._namespace, spec)]

    def _agreed(self, deployments: Sequence[Deployment], name: str, values: list[Any]) -> Any:
        """What all that say something say; the least of them, with a remark, where they differ."""
        said = [it for it in values if it is not None]
        if not said:
            return None
        if min(said) != max(said):
            why = f"deployments of one name differ in {name}; the least holds for the route"
            self._remark("differs", deployments[0].path, why)
        return min(said)

    def _common(
        self, deployments: Sequence[Deployment], where: str, values: list[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """The entries on which all agree; a remark names the others."""
        common = {
            key: value
            for key, value in values[0].items()
            if all(it.get(key) == value for it in values)
        }
        for deployment, its in zip(deployments, values, strict=True):
            for key in its:
                if key not in common:
                    why = "deployments of one name differ in it; give each a ModelRoute of its own"
                    self._remark("no equivalent", f"{deployment.path}.{where} ({key})", why)
        return common

    def _seconds(self, path: str, given: Any) -> float | None:
        return number(given, path, self._remarks)

    def _valid(self, manifests: Iterable[Manifest]) -> list[Manifest]:
        """Those that the API server would take; a remark says what is wrong with another."""
        found = []
        for manifest in manifests:
            try:
                parse(manifest)
            except ResourceError as error:
                about = f"{manifest['kind']} {manifest['metadata']['name']}"
                self._remark("no equivalent", about, f"it would be refused: {error}")
            else:
                found.append(manifest)
        return found

    def _remark(self, sort: Any, path: str, why: str) -> None:
        remark = Remark(sort, path, why)
        if remark not in self._remarks:
            self._remarks.append(remark)


def _load(config: str) -> Mapping[str, Any]:
    try:
        found = yaml.safe_load(config)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"the configuration is not YAML that can be read{where}") from None
    except RecursionError:
        raise ConfigError("the configuration is nested too deeply") from None
    if not isinstance(found, Mapping) or "model_list" not in found:
        raise ConfigError("the configuration has no model_list: is it LiteLLM's config.yaml?")
    return found


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name)
    return found if isinstance(found, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if isinstance(value, str) else []


def _serving(groups: Mapping[str, object], name: str) -> tuple[str, str | None]:
    """The group that a name means, and what its wildcard matches of it."""
    if name in groups:
        return name, None
    prefixes = [it for it in groups if it.endswith("*") and name.startswith(it[:-1])]
    group = max(prefixes, key=len, default=name)
    return group, name[len(group) - 1 :] if prefixes else None


def _scaled(counts: Sequence[int]) -> list[int]:
    """The same shares in smaller numbers."""
    divisor = math.gcd(*counts) or 1
    shares = [count // divisor for count in counts]
    if max(shares) > _MOST_WEIGHT:
        shares = [max(1, share * _MOST_WEIGHT // max(shares)) for share in shares]
    return shares


def _duration(seconds: float) -> str:
    if seconds == int(seconds):
        return f"{int(seconds)}s"
    return (
        f"{int(seconds)}s{int(seconds % 1 * 1000)}ms"
        if seconds >= 1
        else f"{int(seconds * 1000)}ms"
    )


def _slug(name: str) -> str:
    """A Kubernetes name that resembles this one."""
    slug = re.sub(r"[^a-z0-9.-]+", "-", name.lower().replace("*", "any")).strip("-.")
    return slug[:200].rstrip("-.") or "model"


def _free(name: str, taken: set[str]) -> str:
    """The name, numbered where it is taken; it is taken from then on."""
    found = name
    count = 2
    while found in taken:
        found, count = f"{name}-{count}", count + 1
    taken.add(found)
    return found
