"""Service accounts with the rights that the documents give to gateways and to operators."""

from pathlib import Path
from typing import Any

import yaml

from support.kubernetes import KubernetesCluster
from support.operator import eventually
from tollhouse.snapshot import SLOTS, slot_name

ROOT = Path(__file__).resolve().parents[2]
OPERATOR_RIGHTS = ROOT / "examples" / "kubernetes" / "operator-rights.yaml"

_RBAC = "rbac.authorization.k8s.io"


def gateway(
    cluster: KubernetesCluster, namespace: str, snapshot: str, directory: Path, *verbs: str
) -> Path:
    """A kubeconfig in ``directory`` of an account that may read this snapshot's Secrets.

    ``verbs`` are what it may do with the index beside ``get``; ``tollhouse.kube`` documents them.
    """
    name = "gateway"
    slots = [slot_name(snapshot, slot) for slot in range(SLOTS)]
    rules = [
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"], "resourceNames": slots},
        {
            "apiGroups": [""],
            "resources": ["secrets"],
            "verbs": list(verbs),
            "resourceNames": slots[:1],
        },
    ]
    role = {
        "apiVersion": f"{_RBAC}/v1",
        "kind": "Role",
        "metadata": {"name": name},
        "rules": rules,
    }
    binding = _binding("RoleBinding", name, role, namespace, name)
    cluster.apply([_account(name), role, binding], namespace)
    return _kubeconfig(
        cluster, namespace, name, directory, ("get", f"secret/{slot_name(snapshot, 1)}")
    )


def operator(cluster: KubernetesCluster, namespace: str, directory: Path) -> Path:
    """A kubeconfig in ``directory`` of an account with the operator's documented rights."""
    name = "operator"
    role = yaml.safe_load(OPERATOR_RIGHTS.read_text())
    binding = _binding("ClusterRoleBinding", f"{name}-{namespace}", role, namespace, name)
    cluster.apply(role)
    cluster.apply(_account(name), namespace)
    cluster.apply(binding)
    return _kubeconfig(cluster, namespace, name, directory, ("create", "leases"))


def reader(cluster: KubernetesCluster, namespace: str, directory: Path) -> Path:
    """A kubeconfig in ``directory`` of an account that may read our resources of one namespace,
    and no Secret."""
    name = "reader"
    rules = [{"apiGroups": ["tollhouse.dev"], "resources": ["*"], "verbs": ["get", "list"]}]
    role = {
        "apiVersion": f"{_RBAC}/v1",
        "kind": "Role",
        "metadata": {"name": name},
        "rules": rules,
    }
    binding = _binding("RoleBinding", name, role, namespace, name)
    cluster.apply([_account(name), role, binding], namespace)
    return _kubeconfig(cluster, namespace, name, directory, ("list", "apikeys.tollhouse.dev"))


def _account(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}


def _binding(
    kind: str, name: str, role: dict[str, Any], namespace: str, account: str
) -> dict[str, Any]:
    return {
        "apiVersion": f"{_RBAC}/v1",
        "kind": kind,
        "metadata": {"name": name},
        "roleRef": {"apiGroup": _RBAC, "kind": role["kind"], "name": role["metadata"]["name"]},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
    }


def _kubeconfig(
    cluster: KubernetesCluster,
    namespace: str,
    name: str,
    directory: Path,
    right: tuple[str, str],
) -> Path:
    """A kubeconfig with the account's token in a file, once ``right`` is in force."""
    token = cluster.kubectl("create", "token", name, "-n", namespace).stdout.strip()
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    (directory / f"{name}.token").write_text(token)
    config["users"] = [
        {"name": user["name"], "user": {"tokenFile": str(directory / f"{name}.token")}}
        for user in config["users"]
    ]
    path = directory / f"{name}.kubeconfig"
    path.write_text(yaml.safe_dump(config))

    def in_force() -> bool:
        # The authorizer learns of a new role a moment later.
        answer = cluster.kubectl(
            "auth", "can-i", *right, "-n", namespace,
            f"--as=system:serviceaccount:{namespace}:{name}", check=False,
        )  # fmt: skip
        return answer.stdout.strip() == "yes"

    eventually(in_force)
    return path
