"""The service account of a gateway, with the Role that ``tollhouse.kube`` documents."""

import json
import time
from pathlib import Path
from typing import Any

import yaml

from support.kubernetes import KubernetesCluster
from tollhouse.snapshot import SLOTS, slot_name

ACCOUNT = "gateway"


def account(
    cluster: KubernetesCluster, namespace: str, snapshot: str, directory: Path, *verbs: str
) -> Path:
    """A kubeconfig in ``directory`` of a service account that may read this snapshot's Secrets.

    ``verbs`` are what it may do with the index beside ``get``. Its token is in ``token`` there.
    """
    role = json.dumps({"apiVersion": "v1", "kind": "List", "items": _role(snapshot, verbs)})
    cluster.kubectl("apply", "-n", namespace, "-f", "-", input=role)
    token = cluster.kubectl("create", "token", ACCOUNT, "-n", namespace).stdout.strip()
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    (directory / "token").write_text(token)
    config["users"] = [{"name": user["name"], "user": {"tokenFile": "token"}}
                       for user in config["users"]]  # fmt: skip
    path = directory / "gateway.kubeconfig"
    path.write_text(yaml.safe_dump(config))
    for _ in range(50):  # the authorizer learns of a new Role a moment later
        answer = cluster.kubectl(
            "auth", "can-i", "get", f"secret/{slot_name(snapshot, 1)}", "-n", namespace,
            f"--as=system:serviceaccount:{namespace}:{ACCOUNT}", check=False,
        )  # fmt: skip
        if answer.stdout.strip() == "yes":
            return path
        time.sleep(0.1)
    raise AssertionError("the Role did not come into force")


def _role(snapshot: str, verbs_of_the_index: tuple[str, ...]) -> list[dict[str, Any]]:
    """The Role that kube.py documents, and its binding."""
    slots = [slot_name(snapshot, slot) for slot in range(SLOTS)]
    meta = {"name": ACCOUNT}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": meta,
            "rules": [
                {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"],
                 "resourceNames": slots},
                {"apiGroups": [""], "resources": ["secrets"], "verbs": list(verbs_of_the_index),
                 "resourceNames": slots[:1]},
            ],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": meta,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": ACCOUNT},
            "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT}],
        },
    ]  # fmt: skip
