"""OpenLLMetry (traceloop-sdk), as its README says, with a workflow around two calls."""

import sys

import openai
from opentelemetry import trace
from traceloop.sdk import Traceloop
from traceloop.sdk.decorators import workflow

collector, engine = sys.argv[1:3]
Traceloop.init(app_name="traceloop", api_endpoint=collector, disable_batch=False, telemetry_enabled=False)
client = openai.OpenAI(base_url=f"{engine}/v1", api_key="none")


@workflow(name="answer")
def answer() -> None:
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "say something"}], "max_tokens": 8}
    client.chat.completions.create(**asked)
    for _ in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        pass


Traceloop.set_association_properties({"customer_id": "acme", "user_id": "someone"})
answer()
trace.get_tracer_provider().force_flush()
