"""OpenInference's instrumentation of the OpenAI client, with OpenTelemetry's of httpx under it."""

import sys

import openai
from openinference.instrumentation.openai import OpenAIInstrumentor
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
HTTPXClientInstrumentor().instrument(tracer_provider=provider)
OpenAIInstrumentor().instrument(tracer_provider=provider)

client = openai.OpenAI(base_url=f"{sys.argv[2]}/v1", api_key="none")
asked = {"model": "tiny", "messages": [{"role": "user", "content": "say something"}], "max_tokens": 8}
client.chat.completions.create(**asked)
for _ in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
    pass
provider.shutdown()
