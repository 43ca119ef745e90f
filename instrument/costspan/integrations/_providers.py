"""Who serves a model, told from the address that answers."""

from __future__ import annotations

import ipaddress
from functools import lru_cache

from costspan.semconv import OWN_PROVIDER

_PROVIDERS = {
    "api.openai.com": "openai",
    "openai.azure.com": "azure.ai.openai",
    "cognitiveservices.azure.com": "azure.ai.openai",
    "models.ai.azure.com": "azure.ai.inference",
    "services.ai.azure.com": "azure.ai.inference",
    "api.anthropic.com": "anthropic",
    "aiplatform.googleapis.com": "gcp.vertex_ai",
    "generativelanguage.googleapis.com": "gcp.gemini",
    "api.mistral.ai": "mistral_ai",
    "api.groq.com": "groq",
    "api.deepseek.com": "deepseek",
    "api.x.ai": "x_ai",
    "api.perplexity.ai": "perplexity",
    "api.cohere.com": "cohere",
    "api.cohere.ai": "cohere",
    "api.moonshot.ai": "moonshot_ai",
    "ml.cloud.ibm.com": "ibm.watsonx.ai",
}
"""OpenTelemetry's names (``gen_ai.provider.name``) by the end of a host's name."""


@lru_cache(maxsize=256)
def provider_of(host: str) -> str:
    """OpenTelemetry's name of whoever serves at ``host``.

    A host without a public name is an engine of one's own. One that nobody has given a name to keeps its host's, because what
    speaks somebody's protocol (openai's, mostly) need not charge somebody's prices.
    """
    if _is_private(host):
        return OWN_PROVIDER
    if host.startswith("bedrock-runtime.") and host.endswith(".amazonaws.com"):
        return "aws.bedrock"
    known = (name for end, name in _PROVIDERS.items() if host == end or host.endswith(("." + end, "-" + end)))
    return next(known, host)


def _is_private(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return "." not in host or host.endswith((".local", ".internal", ".svc", ".localhost", ".lan"))
    return not address.is_global
