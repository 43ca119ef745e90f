"""opentelemetry-python and its own instrumentation of the OpenAI client; ``OTEL_EXPORTER_OTLP_PROTOCOL`` says how to send."""

import os
import sys

import openai
from opentelemetry import trace
from opentelemetry.instrumentation.openai_v2 import OpenAIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

if os.environ["OTEL_EXPORTER_OTLP_PROTOCOL"] == "grpc":
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
else:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)
OpenAIInstrumentor().instrument()

client = openai.OpenAI(base_url=f"{sys.argv[2]}/v1", api_key="none")
asked = {"model": "tiny", "messages": [{"role": "user", "content": "say something"}], "max_tokens": 8}
with trace.get_tracer("app").start_as_current_span("answer"):
    client.chat.completions.create(**asked)
    for _ in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        pass
provider.shutdown()
