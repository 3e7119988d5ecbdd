"""One cluster with pods for all of ``tests/e2e``."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import pods
from support.kubernetes import NoClusterError
from support.pods import Pods


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Building and starting the cluster is not the first test's own time."""
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        item.add_marker(pytest.mark.e2e)
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(180, func_only=True))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Pods]:
    """A cluster with both images on its node. Skips where none can be had, but fails in CI."""
    with contextlib.ExitStack() as stack:
        try:
            found = stack.enter_context(pods.running())
        except NoClusterError as error:
            if os.environ.get("CI"):
                pytest.fail(f"no Kubernetes with pods in CI: {error}")
            pytest.skip(f"no Kubernetes with pods here: {error}")
        yield found
