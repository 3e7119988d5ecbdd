"""The chart's life in a real cluster: installed, tried, called, upgraded, scaled, uninstalled.

The tests tell one story, in the order of the file, and each needs those before it.
"""

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from support import planted
from support.operator import condition, eventually, until_condition, values
from support.pods import CHART, CLIENT, ROOT, VALKEY, Pods
from support.release import Release, namespace_for

EXAMPLES = ROOT / "examples" / "kubernetes"
SDK = """
import sys, openai
client = openai.OpenAI(max_retries=0)
whole = client.chat.completions.create(
    model="demo/echo", messages=[{"role": "user", "content": "from a pod"}])
assert whole.choices[0].message.content == "from a pod", whole
pieces = client.chat.completions.create(
    model="demo/echo", messages=[{"role": "user", "content": "piece by piece"}], stream=True)
text = "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
assert text == "piece by piece", text
print("models", [model.id for model in client.models.list().data], "at", client.base_url)
"""
TRY = """
import os, sys, urllib.error, urllib.request
request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/models",
    headers={"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]})
try:
    print("status", urllib.request.urlopen(request, timeout=10).status)
except urllib.error.HTTPError as refusal:
    print("status", refusal.code)
"""


@pytest.fixture(scope="module")
def release(cluster: Pods) -> Iterator[Release]:
    for name in ("ai", "shop"):
        namespace_for(cluster, name)
    found = Release(cluster, "tollhouse", "ai")
    yield found
    found.keep_logs()
    cluster.helm("uninstall", "tollhouse", "-n", "ai", "--wait", "--ignore-not-found")


def caller(name: str, program: str, image: str, python: str) -> dict[str, Any]:
    """A Job with the key of ``checkout`` in its environment."""
    restricted = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "backoffLimit": 0,
            "template": {
                "spec": {
                    "restartPolicy": "Never",
                    "automountServiceAccountToken": False,
                    "securityContext": {
                        "runAsNonRoot": True,
                        "runAsUser": 65532,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "containers": [
                        {
                            "name": "caller",
                            "image": image,
                            "imagePullPolicy": "Never",
                            "command": [python, "-c", program],
                            "envFrom": [{"secretRef": {"name": "checkout"}}],
                            "securityContext": restricted,
                        }
                    ],
                }
            },
        },
    }


def ran(cluster: Pods, job: dict[str, Any]) -> str:
    """What a Job in ``shop`` printed, once it is complete; it is deleted then."""
    name = job["metadata"]["name"]
    cluster.api.apply(job, "shop")

    def ended() -> set[str]:
        status = cluster.api.get("job", name, "shop").get("status", {})
        true = {one["type"] for one in status.get("conditions", ()) if one["status"] == "True"}
        return true & {"Complete", "Failed"}

    outcome = eventually(ended, 60)
    printed = cluster.kubectl("-n", "shop", "logs", f"job/{name}").stdout
    cluster.kubectl("-n", "shop", "delete", "job", name)
    assert outcome == {"Complete"}, printed
    return printed


def the_key(cluster: Pods) -> str:
    """The key in the Secret of ``checkout``, registered as a secret that no output may hold."""
    key = values(cluster.api.get("secret", "checkout", "shop"))["OPENAI_API_KEY"]
    return planted.register(key)


def test_it_installs_under_pod_security_restricted(release: Release) -> None:
    began = time.monotonic()
    notes = release.apply_chart()
    print(f"helm install until everything was ready: {time.monotonic() - began:.1f} s")
    assert "http://tollhouse.ai.svc:8080/v1" in notes
    assert len(release.pods_of("gateway")) == 2
    assert len(release.pods_of("operator")) == 2


def test_what_the_notes_say_works_when_it_is_pasted(release: Release) -> None:
    notes = release.cluster.helm("get", "notes", "tollhouse", "-n", "ai").stdout
    prose = re.compile(r"^(?:NOTES|Tollhouse|Paste|The operator|use any|And this|Next|Counters)")
    script = "\n".join(line for line in notes.splitlines() if not prose.match(line))
    done = subprocess.run(
        ["bash", "-e", "-u", "-o", "pipefail", "-c", script],
        env=release.cluster.environ,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Hello from a pod" in done.stdout.splitlines()


def test_helm_test_passes(release: Release) -> None:
    assert "Phase:          Succeeded" in release.helm("test", "--timeout", "60s")


def test_the_three_files_of_examples_are_live_within_seconds(release: Release) -> None:
    cluster = release.cluster
    began = time.monotonic()
    for name, namespace in (("provider", "ai"), ("route", "ai"), ("apikey", "shop")):
        cluster.kubectl("apply", "-n", namespace, "-f", str(EXAMPLES / f"{name}.yaml"))
    cluster.kubectl(
        "wait", "-n", "shop", "apikey/checkout", "--for=condition=Programmed", "--timeout=30s"
    )
    print(f"three files applied until live on every gateway: {time.monotonic() - began:.2f} s")
    the_key(cluster)
    eventually(is_said(cluster, "2/2"), 10)


def test_a_pod_with_the_openai_sdk_calls_by_service_dns(release: Release) -> None:
    printed = ran(release.cluster, caller("sdk", SDK, CLIENT, "/client/bin/python"))
    assert "models ['demo/echo'] at http://tollhouse.ai.svc:8080/v1/" in printed


def test_a_key_is_disabled_and_comes_back(release: Release) -> None:
    cluster = release.cluster
    for disabled, status in ((True, "401"), (False, "200")):
        patch = json.dumps({"spec": {"disabled": disabled}})
        cluster.kubectl("patch", "apikey", "checkout", "-n", "shop", "--type=merge", "-p", patch)
        until_condition(cluster.api, "apikey", "checkout", "shop", "Programmed", "True", 20)
        job = caller("try", TRY, release.image(), "python3")
        assert f"status {status}" in ran(cluster, job)


def test_teams_make_keys_and_touch_nothing_else(release: Release) -> None:
    cluster = release.cluster
    for role in ("view", "edit", "admin"):
        cluster.kubectl(
            "create", "rolebinding", f"team-{role}", f"--clusterrole={role}",
            f"--user={role}er", "-n", "shop",
        )  # fmt: skip

    def may(who: str, verb: str, what: str, namespace: str = "shop") -> bool:
        answer = cluster.kubectl(
            "auth", "can-i", verb, f"{what}.tollhouse.dev", "-n", namespace, f"--as={who}er",
            check=False,
        )  # fmt: skip
        return answer.stdout.strip() == "yes"

    eventually(lambda: may("edit", "create", "apikeys"), 10)
    kinds = ("providers", "modelroutes", "ratelimitpolicies", "budgets")
    for who in ("edit", "admin"):
        assert may(who, "create", "apikeys")
        assert may(who, "delete", "apikeys")
        assert not may(who, "create", "apikeys", "ai")
        assert not any(may(who, verb, kind) for verb in ("create", "patch") for kind in kinds)
    assert all(may("view", "list", kind) for kind in (*kinds, "apikeys"))
    assert not may("view", "create", "apikeys")


def test_an_upgrade_brings_custom_resource_definitions_along(release: Release) -> None:
    """As if this were an upgrade from a chart whose definitions lacked a field."""
    cluster = release.cluster
    name = "apikeys.tollhouse.dev"
    field = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/owner"
    cluster.kubectl(
        "patch", "crd", name, "--type=json", "-p", json.dumps([{"op": "remove", "path": field}])
    )
    release.apply_chart("gateway.replicas=1", "gateway.logLevel=debug")
    found = cluster.json("get", "crd", name)
    schema = found["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert "owner" in schema["properties"]["spec"]["properties"]
    eventually(there_are(release, 1), 30)


def test_a_valkey_of_its_own_keeps_its_password_over_upgrades(release: Release) -> None:
    image, _, tag = VALKEY.rpartition(":")
    values_of_valkey = (
        "valkey.enabled=true",
        f"valkey.image.repository={image}",
        f"valkey.image.tag={tag}",
        "valkey.image.pullPolicy=Never",
        "valkey.command={redis-server}",
        "valkey.persistence.enabled=false",  # the cluster has no storage
    )
    passwords = set()
    for log_level in ("info", "debug"):
        release.apply_chart(*values_of_valkey, f"gateway.logLevel={log_level}")
        secret = values(release.cluster.api.get("secret", "tollhouse-valkey", "ai"))
        passwords.add(planted.register(secret["password"]))
    assert len(passwords) == 1
    in_pod = ("exec", "tollhouse-valkey-0", "--", "redis-cli")
    assert "NOAUTH" in release.kubectl(*in_pod, "incr", "counter")
    assert release.kubectl(*in_pod, "-a", passwords.pop(), "ping").strip() == "PONG"
    arguments = release.kubectl("exec", "tollhouse-valkey-0", "--", "cat", "/proc/1/cmdline")
    assert "requirepass" not in arguments


def test_it_scales_to_five_and_back_to_two(release: Release) -> None:
    for replicas in (5, 2):
        began = time.monotonic()
        release.kubectl("scale", "deployment/tollhouse", f"--replicas={replicas}")
        release.rolled_out("tollhouse")
        eventually(there_are(release, replicas), 30)
        print(f"scaled to {replicas} gateways in {time.monotonic() - began:.1f} s")
        # What is live already is not written again; the next change counts the gateways anew.
        patch = json.dumps({"spec": {"tags": {"gateways": str(replicas)}}})
        release.cluster.kubectl(
            "patch", "apikey", "checkout", "-n", "shop", "--type=merge", "-p", patch
        )
        eventually(is_said(release.cluster, f"{replicas}/{replicas}"), 20)
    printed = ran(release.cluster, caller("sdk", SDK, CLIENT, "/client/bin/python"))
    assert "demo/echo" in printed


def there_are(release: Release, gateways: int) -> Callable[[], bool]:
    return lambda: len(release.pods_of("gateway")) == gateways


def is_said(cluster: Pods, text: str) -> Callable[[], bool]:
    """Whether the ApiKey's status counts the gateways so."""

    def said() -> bool:
        found = cluster.api.get("apikey", "checkout", "shop")
        return text in condition(found, "Programmed").get("message", "")

    return said


def test_each_service_account_has_the_rights_that_are_written_down_and_no_other(
    release: Release,
) -> None:
    written = {
        account: {right for entry in entries for right in rights_of_entry(entry)}
        for account, entries in yaml.safe_load(
            (CHART / "files" / "rights.yaml").read_text()
        ).items()
    }
    granted = granted_rights(release)
    for account, rights in written.items():
        assert granted[account] == rights, account
    assert set(granted) == set(written)
    print("; ".join(f"{who}: {len(rights)} rights" for who, rights in granted.items()))


Right = tuple[str, str, str, str, str]
"""Where ("release", "served" or "cluster"), API group, resource, name or "*", verb."""


def rights_of_entry(entry: dict[str, Any]) -> set[Right]:
    assert len(entry["reason"].split()) >= 4, f"no reason for {entry}"
    names = [str(name) for name in entry.get("names", ["*"])]
    if names == ["snapshot"]:
        names = [f"tollhouse-snapshot-{slot}" for slot in range(64)]
    return {
        (entry["where"], entry["group"], resource, name, verb)
        for resource in entry["resources"]
        for name in names
        for verb in entry["verbs"]
    }


def granted_rights(release: Release) -> dict[str, set[Right]]:
    """What the bindings of the live cluster give to the release's service accounts."""
    cluster = release.cluster
    roles = {
        (item["kind"], item["metadata"]["name"]): item.get("rules") or ()
        for item in cluster.json("get", "roles,clusterroles", "-n", "ai")["items"]
    }
    accounts = cluster.json("get", "serviceaccounts", "-n", "ai")["items"]
    names = {item["metadata"]["name"] for item in accounts} - {"default"}
    found: dict[str, set[Right]] = {name.removeprefix("tollhouse-"): set() for name in names}
    for kind in ("rolebindings", "clusterrolebindings"):
        for binding in cluster.json("get", kind, "-A")["items"]:
            for subject in binding.get("subjects") or ():
                if subject.get("namespace") != "ai" or subject["name"] not in names:
                    continue
                reference = binding["roleRef"]
                everywhere = "served" if reference["name"].endswith("-resources") else "cluster"
                where = "release" if kind == "rolebindings" else everywhere
                for rule in roles[reference["kind"], reference["name"]]:
                    found[subject["name"].removeprefix("tollhouse-")] |= {
                        (where, group, resource, name, verb)
                        for group in rule["apiGroups"]
                        for resource in rule["resources"]
                        for name in rule.get("resourceNames", ["*"])
                        for verb in rule["verbs"]
                    }
    return found


def test_uninstalling_leaves_what_it_says_and_nothing_else(release: Release) -> None:
    cluster = release.cluster
    release.keep_logs()
    said = release.helm("uninstall", "--wait", "--timeout", "90s")
    kinds = cluster.kubectl(
        "api-resources", "--verbs=list", "--namespaced", "-o", "name"
    ).stdout.split()
    listed = ",".join(kind for kind in kinds if kind.partition(".")[0] != "events")
    # Gateways finish what they have begun, so they outlive the release by the drain.
    cluster.kubectl("-n", "ai", "wait", "pods", "--all", "--for=delete", "--timeout=60s")
    left = {
        re.sub(r"snapshot-\d+$", "snapshot-…", f"{item['kind']}/{item['metadata']['name']}")
        for item in cluster.json("get", listed, "-n", "ai")["items"]
        if item["metadata"]["name"] not in {"default", "kube-root-ca.crt"}
        and item["kind"] != "PodMetrics"
    }
    documented = (ROOT / "docs" / "install.md").read_text()
    print("uninstall leaves:", *sorted(left))
    assert left == {
        "Lease/tollhouse-operator",
        "ModelRoute/echo",
        "Provider/echo",
        "Secret/tollhouse-snapshot-…",
    }
    assert all(word in documented for word in ("Lease", "snapshot", "definitions"))
    cluster_wide = cluster.json("get", "clusterroles,clusterrolebindings,crds")["items"]
    ours = {
        item["metadata"]["name"] for item in cluster_wide if "tollhouse" in item["metadata"]["name"]
    }
    assert ours == {
        f"{kind}.tollhouse.dev"
        for kind in ("providers", "modelroutes", "apikeys", "ratelimitpolicies", "budgets")
    }
    assert all(name.partition(".")[0] in said for name in ours)
