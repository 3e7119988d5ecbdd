"""What the OpenAPI document says is so: thousands of generated requests to a real gateway.

Schemathesis makes requests that fit the document and requests that break it on purpose. Whatever
comes, the gateway answers with a documented status and media type, in the documented shape, and
never with a 5xx.
"""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from support import gateway as g
from support.gateway import Gateway
from tollhouse.api import openapi

CASES = {
    "/v1/chat/completions": 200,
    "/v1/models": 60,
    "/v1/key": 40,
    "/api/models": 40,
    "/openapi.json": 40,
}
"""Per mode of generation; a GET without parameters has little to vary."""
PROMISES = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
MODELS = ("mock/echo", "mock/other", "wild/any\u00e9")


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
    base_url = f"http://127.0.0.1:{gateway.port}"
    seen: Counter[tuple[str, str, int]] = Counter()
    begun = time.monotonic()
    with closing(requests.Session()) as session:
        session.headers["Authorization"] = f"Bearer {g.KEY}"
        for path, operation in openapi.OPERATIONS.items():
            described = schema[path][operation.method]
            for mode in GenerationMode:
                if mode.is_negative and operation.takes is None:
                    continue

                @given(case=described.as_strategy(generation_mode=mode))
                @settings(
                    max_examples=CASES[path],
                    deadline=None,
                    derandomize=True,
                    database=None,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )
                def every_answer_is_documented(case: Case) -> None:
                    answer = case.call(base_url=base_url, session=session)
                    seen[path, mode.value, answer.status_code] += 1
                    case.validate_response(answer, checks=PROMISES)

                every_answer_is_documented()
    print(f"{seen.total()} cases in {time.monotonic() - begun:.0f} s: {dict(seen)}")
