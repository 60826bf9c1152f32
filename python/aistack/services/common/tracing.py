"""OpenTelemetry traces, where `OTEL_TRACING_ENABLED` says so.

Spans go to the collector that `OTEL_EXPORTER_OTLP_ENDPOINT` names; where it names none, each span is an event `span`
of the telemetry. The trace of a caller (`traceparent`, W3C) is continued, and passed on with `headers`.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from aistack.services.common.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider

    from aistack.services.common.settings import ServiceSettings
    from aistack.services.common.telemetry import Telemetry

Attribute = str | bool | int | float


class TracingUnavailable(ConfigurationError):
    """Tracing is asked for, and its library is not installed."""


class Tracing:
    """Makes spans; does nothing unless tracing is enabled."""

    def __init__(self, settings: ServiceSettings, telemetry: Telemetry) -> None:
        """Prepare it.

        Raises:
            TracingUnavailable: the OpenTelemetry library is missing.
        """
        self._provider: TracerProvider | None = None
        if not settings.otel_tracing_enabled:
            return
        try:
            self._provider = _provider(settings, telemetry)
        except ImportError as error:
            raise TracingUnavailable(
                f"OTEL_TRACING_ENABLED is true and the Python package {error.name} is not installed; "
                "install opentelemetry-sdk and opentelemetry-exporter-otlp-proto-http, or set it to false"
            ) from None

    @property
    def enabled(self) -> bool:
        """Whether spans are recorded."""
        return self._provider is not None

    @contextmanager
    def span(
        self, name: str, attributes: Mapping[str, Attribute] | None = None, *, caller: Mapping[str, str] | None = None
    ) -> Iterator[None]:
        """Record what happens inside as a span; `caller` are the headers of a request that it belongs to."""
        if self._provider is None:
            yield
            return
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        context = None if caller is None else TraceContextTextMapPropagator().extract(caller)
        tracer = self._provider.get_tracer("aistack")
        # What went wrong is said by the exception's type alone: its words may be someone's prompt.
        with tracer.start_as_current_span(
            name, context, attributes=attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield
            except BaseException as error:
                span.set_attribute("error.type", type(error).__name__)
                raise

    def annotate(self, attributes: Mapping[str, Attribute]) -> None:
        """Add to the present span."""
        if self._provider is not None:
            from opentelemetry import trace

            trace.get_current_span().set_attributes(attributes)

    def headers(self) -> dict[str, str]:
        """Return the headers that let another service continue the present trace."""
        carrier: dict[str, str] = {}
        if self._provider is not None:
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

            TraceContextTextMapPropagator().inject(carrier)
        return carrier

    def trace_id(self) -> str | None:
        """Return the present trace's id in hexadecimal."""
        if self._provider is None:
            return None
        from opentelemetry import trace

        context = trace.get_current_span().get_span_context()
        return f"{context.trace_id:032x}" if context.is_valid else None

    def close(self) -> None:
        """Send what is left, for at most a second."""
        if self._provider is not None:
            self._provider.force_flush(1000)


def _provider(settings: ServiceSettings, telemetry: Telemetry) -> TracerProvider:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import (
        BatchSpanProcessor,
        SimpleSpanProcessor,
        SpanExporter,
        SpanExportResult,
    )

    provider = TracerProvider(resource=Resource.create({"service.name": settings.service}), shutdown_on_exit=False)
    if settings.otel_exporter_otlp_endpoint:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        endpoint = settings.otel_exporter_otlp_endpoint.rstrip("/") + "/v1/traces"
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint, timeout=2)))
        return provider

    class TelemetrySpanExporter(SpanExporter):
        """Writes spans as telemetry."""

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            for span in spans:
                _emit(telemetry, span)
            return SpanExportResult.SUCCESS

    provider.add_span_processor(SimpleSpanProcessor(TelemetrySpanExporter()))
    return provider


def _emit(telemetry: Telemetry, span: ReadableSpan) -> None:
    began, ended = span.start_time or 0, span.end_time or 0
    telemetry.emit(
        "span",
        duration_seconds=max(0, ended - began) / 1e9,
        trace_id=None if span.context is None else f"{span.context.trace_id:032x}",
        name=span.name,
        span_id=None if span.context is None else f"{span.context.span_id:016x}",
        parent_id=None if span.parent is None else f"{span.parent.span_id:016x}",
        attributes={
            key: value if isinstance(value, Attribute) else str(value) for key, value in (span.attributes or {}).items()
        },
    )
