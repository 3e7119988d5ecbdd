"""What the OpenAPI document says is so: thousands of generated requests to a real gateway.

Schemathesis makes requests that fit the document and requests that break it on purpose. Whatever
comes, the gateway answers with a documented status and media type, in the documented shape, and
never with a 5xx.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from support import gateway as g
from support.gateway import Gateway
from tollhouse.api import openapi

CASES = {"/v1/chat/completions": 200, "/v1/models": 60, "/openapi.json": 40}
"""Per mode of generation; a GET without parameters has little to vary."""
PROMISES = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("config")
    g.write(
        folder,
        g.caller(),
        g.mock("echo"),
        g.route("echo", ["mock/echo"], "echo"),
        g.route("wild", ["*"], "echo"),
    )
    with g.running(folder, name="openapi") as running:
        yield running


def test_the_gateway_serves_the_document_without_a_key(gateway: Gateway) -> None:
    answer = requests.get(f"http://127.0.0.1:{gateway.port}/openapi.json", timeout=5)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.content == openapi.encode()


@pytest.mark.timeout(300)
def test_generated_requests_get_documented_answers(gateway: Gateway) -> None:
    schema = schemathesis.openapi.from_dict(openapi.document())
    seen: Counter[tuple[str, str, int]] = Counter()
    begun = time.monotonic()
    with closing(requests.Session()) as session:
        session.headers["Authorization"] = f"Bearer {g.KEY}"
        for path, operation in openapi.OPERATIONS.items():
            for mode in GenerationMode:
                if mode.is_negative and operation.takes is None:
                    continue
                cases = schema[path][operation.method].as_strategy(generation_mode=mode)

                def answered(case: Case, key: tuple[str, str] = (path, mode.value)) -> None:
                    answer = case.call(
                        base_url=f"http://127.0.0.1:{gateway.port}", session=session, timeout=10
                    )
                    seen[*key, answer.status_code] += 1
                    case.validate_response(answer, checks=PROMISES)

                generate(cases, CASES[path], answered)
    print(f"{seen.total()} cases in {time.monotonic() - begun:.0f} s: {dict(seen)}")


def generate(cases: SearchStrategy[Case], count: int, check: Callable[[Case], None]) -> None:
    """Check this many cases, the same on every run; the first failure is raised as it is."""

    @given(case=cases)
    @settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def run(case: Case) -> None:
        check(case)

    run()
