"""One release of the chart, as tests install, upgrade and look at it."""

from support import planted
from support.pods import CHART, PRODUCT, Pods

VALUES = (
    "image.repository=" + PRODUCT.rpartition(":")[0],
    "image.tag=" + PRODUCT.rpartition(":")[2],
    "image.pullPolicy=Never",
    # What differs from the chart's own: two cores serve all pods here, and streams last a second.
    "gateway.resources.requests.cpu=50m",
    "gateway.drainTimeoutSeconds=20",
    "operator.resources.requests.cpu=50m",
)


class Release:
    """The chart under one name in one namespace, which enforces Pod Security ``restricted``."""

    def __init__(self, cluster: Pods, name: str, namespace: str) -> None:
        self.cluster = cluster
        self.name = name
        self.namespace = namespace

    def helm(self, action: str, *arguments: str) -> str:
        """A Helm command on this release."""
        return self.cluster.helm(action, self.name, "-n", self.namespace, *arguments).stdout

    def apply_chart(self, *values: str) -> str:
        """Install or upgrade, and wait until everything is ready; returns the notes."""
        given = [part for value in (*VALUES, *values) for part in ("--set", value)]
        flags = ("--install", "--take-ownership", "--wait", "--timeout", "120s")
        return self.helm("upgrade", str(CHART), *flags, *given)

    def image(self) -> str:
        """The image under test."""
        return PRODUCT

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """kubectl in the release's namespace."""
        return self.cluster.kubectl("-n", self.namespace, *arguments, input=stdin).stdout

    def pods_of(self, component: str) -> list[str]:
        """Names of the pods of a component that are not going away."""
        found = self.cluster.json(
            "get", "pods", "-n", self.namespace, "-l", f"app.kubernetes.io/component={component}"
        )
        return [
            item["metadata"]["name"]
            for item in found["items"]
            if "deletionTimestamp" not in item["metadata"]
        ]

    def rolled_out(self, deployment: str) -> None:
        """Wait until a Deployment is as it should be, with no old pod left."""
        self.kubectl("rollout", "status", f"deployment/{deployment}", "--timeout=120s")

    def keep_logs(self) -> None:
        """Pods' logs, where they are searched for secrets with all others."""
        for pod in [*self.pods_of("gateway"), *self.pods_of("operator")]:
            text = self.cluster.kubectl("-n", self.namespace, "logs", pod, check=False).stdout
            (planted.log_directory() / f"pod-{self.namespace}-{pod}.log").write_text(text)


def namespace_for(cluster: Pods, name: str) -> None:
    """A fresh namespace that lets in nothing but restricted pods."""
    cluster.kubectl("delete", "namespace", name, "--ignore-not-found")
    cluster.api.apply(
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {
                "name": name,
                "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
            },
        }
    )
