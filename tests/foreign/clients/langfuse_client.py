"""Langfuse's drop-in for the OpenAI client, its spans sent to a collector of one's own."""

import sys

from langfuse import Langfuse
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

collector, engine = sys.argv[1:3]
keys = {"public_key": "pk", "secret_key": "sk"}  # of no account
langfuse = Langfuse(**keys, host=collector, span_exporter=OTLPSpanExporter())
from langfuse.openai import openai  # noqa: E402  (after the client that it uses)

client = openai.OpenAI(base_url=f"{engine}/v1", api_key="none")
asked = {"model": "tiny", "messages": [{"role": "user", "content": "say something"}], "max_tokens": 8}
client.chat.completions.create(**asked)
for _ in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
    pass
with langfuse.start_as_current_observation(as_type="generation", name="claude", model="claude-sonnet") as generation:
    generation.update(usage_details={"input": 40, "output": 7, "cache_read_input_tokens": 1000})
langfuse.flush()
langfuse.shutdown()
