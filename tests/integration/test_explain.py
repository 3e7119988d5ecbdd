"""What ``tollhouse explain`` says is what callers meet: on a folder, and on a cluster for a person
who may read no Secret."""

import http.client
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support import accounts, planted
from support import gateway as g
from support import operator as o
from support.gateway import Gateway
from support.kubernetes import KubernetesCluster

KEYS = {name: f"sk-brought-PLANTED-explained-{name}" for name in ("plain", "listed", "disabled")}


def run(*arguments: str | Path, **environ: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tollhouse", "explain", *map(str, arguments), "-o", "json"]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=100, check=False,
        env=os.environ | environ,
    )  # fmt: skip


def refusal(gateway: Gateway, key: str, model: str) -> dict[str, Any] | None:
    """What a caller is told: status, code and message; None where it was served."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=10)
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}]})
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    try:
        connection.request("POST", "/v1/chat/completions", body, headers)
        answer = connection.getresponse()
        told = json.loads(answer.read())
    finally:
        connection.close()
    if answer.status == 200:
        return None
    error = told["error"]
    return {"status": answer.status, "code": error["code"], "message": error["message"]}


@pytest.mark.parametrize("model", ["base", "base:high", "bose", "private", "empty", "*"])
@pytest.mark.parametrize("name", KEYS)
def test_it_says_word_by_word_what_a_caller_is_told(
    served: tuple[Gateway, Path], model: str, name: str
) -> None:
    gateway, folder = served
    done = run(folder, "--key", f"ai/{name}", "--model", model)
    told = refusal(gateway, KEYS[name], model)
    assert json.loads(done.stdout)["refusal"] == told
    assert done.returncode == (0 if told is None else 1)
    assert done.stderr == ""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A gateway and the folder that it serves."""
    folder = tmp_path_factory.mktemp("explained")
    private = g.route("private", ["private"], "mock")
    private["metadata"]["namespace"] = "elsewhere"
    g.write(
        folder,
        g.mock(),
        g.route("base", ["base"], "mock"),
        g.route("empty", ["empty"], "nowhere"),
        private,
        g.caller("plain", KEYS["plain"]),
        g.caller("listed", KEYS["listed"], allowedModels=["other"]),
        g.caller("disabled", KEYS["disabled"], disabled=True),
    )
    with g.running(folder, name="explained") as gateway:
        yield gateway, folder


def test_a_cluster_is_explained_to_a_person_who_may_read_no_secret(
    cluster: KubernetesCluster, namespace: str, tmp_path: Path
) -> None:
    manifests = [
        g.mock("mock"),
        g.openai_compatible("ready", "https://ready.example/v1")[0],
        g.secret("ready", {"api-key": "sk-provider-PLANTED-explained"}),
        g.openai_compatible("late", "https://late.example/v1")[0],
        g.route("base", ["base"], "mock", "ready", "late"),
        g.manifest("ApiKey", "caller", {"limits": [{"requests": 60, "per": "Minute"}]}),
    ]
    with o.running(cluster.kubeconfig, namespace):
        cluster.apply(
            [{**m, "metadata": {**m["metadata"], "namespace": namespace}} for m in manifests]
        )
        o.until_condition(cluster, "provider", "late", namespace, "ResolvedRefs", "False", 15)
        o.until_condition(cluster, "apikey", "caller", namespace, "ResolvedRefs", "True", 15)
    config = accounts.reader(cluster, namespace, tmp_path)
    path = f"{Path(cluster.program).parent}{os.pathsep}{os.environ['PATH']}"
    question = ("--cluster", "--namespace", namespace, "--model", "base")
    by_name = run(*question, "--key", f"{namespace}/caller", KUBECONFIG=str(config), PATH=path)
    assert by_name.returncode == 0, by_name.stderr
    found = json.loads(by_name.stdout)
    assert [it["provider"] for it in found["targets"]] == [
        f"{namespace}/mock",
        f"{namespace}/ready",
    ]
    assert [it["says"] for it in found["limits"]] == [
        "requests-per-minute: 60 requests per minute; without the counters: Local"
    ]
    (left_out,) = found["passed_over"]
    assert left_out["what"] == f"target 2, Provider {namespace}/late"

    # A key's text needs the Secrets of ApiKeys, which this person may not read.
    secret = cluster.get("secret", "caller", namespace)
    key = planted.register(o.values(secret)["OPENAI_API_KEY"])
    denied = run(*question, "--key-env", "CALLER", CALLER=key, KUBECONFIG=str(config), PATH=path)
    assert denied.returncode == 2
    assert "secrets" in denied.stderr
    admin = str(cluster.kubeconfig)
    allowed = run(*question, "--key-env", "CALLER", CALLER=key, KUBECONFIG=admin, PATH=path)
    assert allowed.returncode == 0, allowed.stderr
    assert json.loads(allowed.stdout)["caller"]["name"] == f"{namespace}/caller"
    assert key not in by_name.stdout + denied.stdout + denied.stderr + allowed.stdout
