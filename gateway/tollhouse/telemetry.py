"""Every metric, span and log line, by name.

Metrics are Prometheus series with a bounded number of label values: routes, providers and codes,
never callers, models or request ids. Spans go out by OTLP when ``OTEL_EXPORTER_OTLP_ENDPOINT`` (or
its traces form) is set; without it nothing is recorded, and a caller's ``traceparent`` travels on
as it came. Names follow OpenTelemetry's semantic conventions for generative AI and HTTP clients.
"""

import functools
import logging
import os
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import structlog
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
    values,
)

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_STORE = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_OVERHEAD = (0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256)


class Metrics:
    """The gateway's series. One per process; ``registry`` lets a test have its own.

    A series with labels is a function from the labels' values, in the order of its declaration, to
    the series that counts: looking one up in a cache costs a tenth of asking the library.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        requests = Counter(
            "tollhouse_requests",
            "Requests answered, by route (namespace/name), status and error code.",
            ["route", "status", "code"],
            registry=registry,
        )
        duration = Histogram(
            "tollhouse_request_duration_seconds",
            "From the request's head to the last byte of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.overhead = Histogram(
            "tollhouse_overhead_seconds",
            "Time to the first byte of an answer that was not spent waiting for a provider.",
            buckets=_OVERHEAD,
            registry=registry,
        )
        attempts = Counter(
            "tollhouse_upstream_attempts",
            "Attempts at providers (namespace/name), by outcome.",
            ["provider", "outcome"],
            registry=registry,
        )
        first_byte = Histogram(
            "tollhouse_upstream_first_byte_seconds",
            "From sending a request to a provider to the head of its answer.",
            ["provider"],
            buckets=_SECONDS,
            registry=registry,
        )
        passed_over = Gauge(
            "tollhouse_targets_passed_over",
            "Targets that are passed over after failures in a row, by provider (namespace/name).",
            ["provider"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        tokens = Counter(
            "tollhouse_tokens",
            "Tokens used, by route and direction (input or output).",
            ["route", "direction"],
            registry=registry,
        )
        estimated_tokens = Counter(
            "tollhouse_estimated_tokens",
            "The part of tollhouse_tokens that no provider counted and the gateway estimated.",
            ["route", "direction"],
            registry=registry,
        )
        limited = Counter(
            "tollhouse_limited",
            "Requests refused by a limit or a budget, by its name and the error code.",
            ["limit", "code"],
            registry=registry,
        )
        budget_warnings = Counter(
            "tollhouse_budget_warnings",
            "Requests admitted while a budget was used up to a percentage at which it warns.",
            ["budget", "percent"],
            registry=registry,
        )
        unpriced = Counter(
            "tollhouse_unpriced_requests",
            "Requests under a budget whose cost nobody knows, and which it was not charged for.",
            ["route"],
            registry=registry,
        )
        self.in_flight = Gauge(
            "tollhouse_in_flight_requests",
            "Requests between their head and the last byte of their answer.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.config_synced = Gauge(
            "tollhouse_config_synced",
            "1 while the newest configuration is in force, 0 while an older one has to serve.",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.config_reloads = Counter(
            "tollhouse_config_reloads",
            "Configurations put in force.",
            registry=registry,
        )
        self.store_up = Gauge(
            "tollhouse_store_up",
            "1 while the counters' store answers, 0 while each limit's onStoreFailure decides.",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.store_seconds = Histogram(
            "tollhouse_store_seconds",
            "Round trips to the counters' store; one can carry many requests.",
            buckets=_STORE,
            registry=registry,
        )
        store_decisions = Counter(
            "tollhouse_store_decisions",
            "Limits that were decided without the store, by mode (Allow, Deny or Local).",
            ["mode"],
            registry=registry,
        )
        self.ledger_lost = Counter(
            "tollhouse_ledger_lost",
            "Events that the ledger's stream never got, because it was away for too long.",
            registry=registry,
        )
        self.store_decisions: Callable[[str], Counter] = functools.cache(store_decisions.labels)
        named = (
            *(requests, duration, attempts, first_byte, passed_over, tokens, estimated_tokens),
            *(limited, budget_warnings, unpriced),
        )
        by_name = {metric: _Series(metric) for metric in named}
        self._series = tuple(by_name.values())
        self.requests: Callable[[str, int, str], Counter] = by_name[requests].child
        self.duration: Callable[[str], Histogram] = by_name[duration].child
        self.attempts: Callable[[str, str], Counter] = by_name[attempts].child
        self.first_byte: Callable[[str], Histogram] = by_name[first_byte].child
        self.passed_over: Callable[[str], Gauge] = by_name[passed_over].child
        self.tokens: Callable[[str, str], Counter] = by_name[tokens].child
        self.estimated_tokens: Callable[[str, str], Counter] = by_name[estimated_tokens].child
        self.limited: Callable[[str, str], Counter] = by_name[limited].child
        self.budget_warnings: Callable[[str, str], Counter] = by_name[budget_warnings].child
        self.unpriced: Callable[[str], Counter] = by_name[unpriced].child

    def keep(self, objects: Collection[str]) -> None:
        """Forget the series of routes and providers (namespace/name), of limits and budgets (by
        their names) that are not among these.

        Words that name no object, such as ``models`` for the catalogue, stay. Processes that share
        their series keep them until they end: the library cannot take one out of a shared file.
        """
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            for series in self._series:
                series.keep(objects)


class _Series:
    """The series of one metric, by the values of its labels, the first of which is an object."""

    def __init__(self, metric: Counter | Gauge | Histogram) -> None:
        self._metric = metric
        self._seen: set[tuple[str, ...]] = set()
        self.child: Callable[..., Any] = functools.lru_cache(maxsize=4096)(self._make)
        self._forget = self.child.cache_clear

    def keep(self, objects: Collection[str]) -> None:
        gone = [it for it in self._seen if "/" in it[0] and it[0] not in objects]
        for labels in gone:
            self._metric.remove(*labels)
            self._seen.discard(labels)
        if gone:
            # What is counted for one of them from now on begins a new series.
            self._forget()

    def _make(self, *labels: object) -> Counter | Gauge | Histogram:
        self._seen.add(tuple(map(str, labels)))
        return self._metric.labels(*labels)


def exposition() -> bytes:
    """This process's series in Prometheus' text format."""
    return generate_latest(REGISTRY)


def share_metrics(directory: Path, slot: int) -> None:
    """Keep the series in files of this directory, for ``shared_exposition`` to add up.

    Call it before the first metric is made. ``slot`` is a number that no other process has now;
    whoever has it next counts on from where this one ended, so the files stay as few as slots.
    """
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
    values.ValueClass = values.MultiProcessValue(lambda: slot)  # type: ignore[no-untyped-call]  # because the library has no types here


def shared_exposition(directory: Path) -> bytes:
    """The series of all processes that share this directory, in Prometheus' text format."""
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, path=str(directory))  # type: ignore[no-untyped-call]  # because the library has no types here
    return generate_latest(registry)


def forget_gauges(directory: Path, slot: int) -> None:
    """Take what a process that has ended said of its present state out of the sums."""
    multiprocess.mark_process_dead(slot, str(directory))  # type: ignore[no-untyped-call]  # because the library has no types here


class Tracer:
    """Client spans around attempts at providers, and trace context passed onwards."""

    def __init__(self) -> None:
        self._tracer = trace.get_tracer("tollhouse")
        self._recording = (
            bool(
                os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
                or os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
            )
            and os.environ.get("OTEL_SDK_DISABLED", "").lower() != "true"
        )

    def start(self) -> None:
        """Begin exporting, where the standard variables ask for it."""
        if not self._recording:
            return
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        os.environ.setdefault("OTEL_SERVICE_NAME", "tollhouse")
        provider = TracerProvider(resource=Resource.create())
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._provider = provider
        self._tracer = provider.get_tracer("tollhouse")

    def stop(self) -> None:
        """Send what is still queued; blocks for as long as ``OTEL_EXPORTER_OTLP_TIMEOUT`` says."""
        if self._recording:
            self._provider.shutdown()

    def context(self, headers: Mapping[str, str]) -> Context | None:
        """The caller's trace context, or None where nothing is recorded."""
        return propagate.extract(headers) if self._recording else None

    def attempt(
        self,
        context: Context | None,
        *,
        operation: str,
        model: str,
        provider: str,
        kind: str,
        number: int,
    ) -> "AttemptSpan":
        """A span for attempt ``number`` (from 1) at ``provider`` (namespace/name)."""
        if not self._recording:
            return _UNRECORDED
        span = self._tracer.start_span(
            f"{operation} {model}",
            context=context,
            kind=SpanKind.CLIENT,
            attributes={
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": kind.lower(),
                "gen_ai.request.model": model,
                "tollhouse.provider": provider,
                "tollhouse.attempt": number,
            },
        )
        return AttemptSpan(span)


class AttemptSpan:
    """One attempt's span; ``end`` is called exactly once."""

    __slots__ = ("_span",)

    def __init__(self, span: Span | None) -> None:
        self._span = span

    def propagate(self, caller: Mapping[str, str], onwards: dict[str, str]) -> None:
        """Put the trace context into the headers that go to the provider.

        The caller's own context is passed on untouched where this span is not recorded.
        """
        if self._span is not None:
            propagate.inject(onwards, context=trace.set_span_in_context(self._span))
            return
        for name in ("traceparent", "tracestate"):
            value = caller.get(name)
            if value is not None:
                onwards[name] = value

    def first_byte(self, status: int) -> None:
        """The answer's head arrived."""
        if self._span is not None:
            self._span.set_attribute("http.response.status_code", status)
            self._span.add_event("first_byte")

    def usage(self, prompt_tokens: int, completion_tokens: int, *, estimated: bool) -> None:
        """``estimated`` where the provider did not count, and the gateway had to."""
        if self._span is not None:
            if estimated:
                self._span.set_attribute("tollhouse.usage.estimated", True)
            self._span.set_attribute("gen_ai.usage.input_tokens", prompt_tokens)
            self._span.set_attribute("gen_ai.usage.output_tokens", completion_tokens)

    def end(self, outcome: str) -> None:
        """``outcome`` is ``ok``, ``cancelled`` or an UpstreamError's word."""
        if self._span is None:
            return
        if outcome != "ok":
            self._span.set_attribute("error.type", outcome)
            self._span.set_status(Status(StatusCode.ERROR, outcome))
        self._span.end()


_UNRECORDED = AttemptSpan(None)


def configure_logging(log_format: str, level: str) -> None:
    """Send every log line, our own and libraries', to standard error.

    ``log_format`` is ``json``, ``console``, or ``auto`` (console on a terminal). ``level`` is a
    standard level's name in lower case.
    """
    if log_format == "auto":
        log_format = "console" if sys.stderr.isatty() else "json"
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.types.Processor = (
        structlog.dev.ConsoleRenderer()
        if log_format == "console"
        else structlog.processors.JSONRenderer()
    )
    # Tracebacks without local variables: those can hold keys.
    traceback = structlog.processors.format_exc_info
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                traceback,
                renderer,
            ],
            foreign_pre_chain=shared,
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    logging.getLogger("opentelemetry").setLevel(logging.WARNING)
    logging.getLogger("watchfiles").setLevel(logging.WARNING)
