"""Logfire's instrumentation of the OpenAI client, its spans sent to a collector of one's own."""

import sys

import logfire
import openai

logfire.configure(send_to_logfire=False, console=False)
logfire.instrument_openai()

client = openai.OpenAI(base_url=f"{sys.argv[2]}/v1", api_key="none")
asked = {"model": "tiny", "messages": [{"role": "user", "content": "say something"}], "max_tokens": 8}
with logfire.span("answer"):
    client.chat.completions.create(**asked)
    for _ in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        pass
logfire.shutdown()
