"""What the OpenAPI document says is so: thousands of generated requests to a real gateway.

Schemathesis makes requests that fit the document and requests that break it on purpose. Whatever
comes, the gateway answers with a documented status and media type, in the documented shape, and
never with a 5xx.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

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

CASES = {GenerationMode.POSITIVE: 140, GenerationMode.NEGATIVE: 25}
"""Requests per field. To break the document on purpose costs three times as much as to keep to it;
test_fuzz_bodies.py sends thousands more that do."""
WHOLE_CASES = dict.fromkeys(GenerationMode, 25)
"""Requests with every field at once: such a body takes a tenth of a second to make."""
PROMISES = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("config")
    with g.echoing(folder, "mock/echo", "*", name="openapi") as running:
        yield running


def test_the_gateway_serves_the_document_without_a_key(gateway: Gateway) -> None:
    answer = requests.get(f"http://127.0.0.1:{gateway.port}/openapi.json", timeout=5)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.content == openapi.encode()


@pytest.mark.timeout(300)
def test_generated_requests_get_documented_answers(gateway: Gateway) -> None:
    seen: Counter[tuple[str, int]] = Counter()
    begun = time.monotonic()
    with closing(requests.Session()) as session:
        session.headers["Authorization"] = f"Bearer {g.KEY}"
        for document, path, counts in documents():
            operation = openapi.OPERATIONS[path]
            described = schemathesis.openapi.from_dict(document)[path][operation.method]
            for mode in GenerationMode:
                if mode.is_negative and operation.takes is None:
                    continue

                def answered(case: Case, path: str = path) -> None:
                    answer = case.call(
                        base_url=f"http://127.0.0.1:{gateway.port}", session=session, timeout=10
                    )
                    seen[path, answer.status_code] += 1
                    case.validate_response(answer, checks=PROMISES)

                generate(described.as_strategy(generation_mode=mode), counts[mode], answered)
    print(f"{seen.total()} cases in {time.monotonic() - begun:.0f} s: {dict(seen)}")
    assert seen.total() >= 5000
    assert seen["/v1/chat/completions", 200] >= 500


def documents() -> Iterator[tuple[dict[str, Any], str, dict[GenerationMode, int]]]:
    """The document for each path, and for chat also with one field at a time: (document, path,
    cases). One field at a time is quick to make, and a wrong one is not hidden behind others.
    """
    for path, operation in openapi.OPERATIONS.items():
        if not operation.form:  # test_passthrough_bytes.py takes forms apart byte by byte
            yield openapi.document(), path, WHOLE_CASES
    for field in openapi.document()["components"]["schemas"]["ChatBody"]["properties"]:
        document = openapi.document()
        body = document["components"]["schemas"]["ChatBody"]
        body["properties"] = {
            "model": body["properties"]["model"],
            "messages": {"enum": [[{"role": "user", "content": "hi"}]]},
            field: body["properties"][field],
        }
        body["required"] = sorted({"model", "messages", field})
        body["additionalProperties"] = False
        yield document, "/v1/chat/completions", CASES


def generate(cases: SearchStrategy[Case], count: int, check: Callable[[Case], None]) -> None:
    """Check this many cases, the same on every run; the first failure is raised as it is."""

    @given(case=cases)
    @settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        report_multiple_bugs=False,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def run(case: Case) -> None:
        check(case)

    run()
