"""Fixtures for tests against a real Kubernetes API server."""

import contextlib
import os
import uuid
from collections.abc import Iterator

import pytest

from support.kubernetes import KubernetesCluster, NoClusterError, running_cluster


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs the cluster; building or starting it is not the first test's own time."""
    for item in items:
        if "cluster" not in getattr(item, "fixturenames", ()):
            continue
        item.add_marker(pytest.mark.cluster)
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(120, func_only=True))


@pytest.fixture(scope="session")
def cluster() -> Iterator[KubernetesCluster]:
    """A real API server with the CRDs in it. Skips where none can be had, but fails in CI."""
    with contextlib.ExitStack() as stack:
        try:
            found = stack.enter_context(running_cluster())
        except NoClusterError as error:
            if os.environ.get("CI"):
                pytest.fail(f"no Kubernetes in CI: {error}")
            pytest.skip(f"no Kubernetes here: {error}")
        found.install_crds()
        yield found


@pytest.fixture
def namespace(cluster: KubernetesCluster) -> Iterator[str]:
    """A namespace of the test's own."""
    name = f"test-{uuid.uuid4().hex[:10]}"
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")
