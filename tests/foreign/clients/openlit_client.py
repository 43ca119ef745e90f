"""OpenLIT, as its README says."""

import sys

import openai
import openlit
from opentelemetry import trace

collector, engine = sys.argv[1:3]
openlit.init(otlp_endpoint=collector, application_name="openlit", capture_message_content=False)

client = openai.OpenAI(base_url=f"{engine}/v1", api_key="none")
asked = {"model": "tiny", "messages": [{"role": "user", "content": "say something"}], "max_tokens": 8}
client.chat.completions.create(**asked)
for _ in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
    pass
trace.get_tracer_provider().force_flush()
