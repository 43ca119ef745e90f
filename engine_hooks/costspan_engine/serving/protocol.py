"""OpenAI's requests and errors, as far as this engine serves them."""

from __future__ import annotations

from math import ceil
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from costspan.semconv import LatencyClass
from costspan_engine.errors import RequestError

MAX_CHOICES = 16
MAX_TOP_LOGPROBS = 20
_INT32 = 2**31
_INT64 = 2**63
_WEEK_S = 7 * 24 * 3600
_Stops = Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=4)]
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
}
"""Fields that would change the answer and are not served, with the values that ask for nothing; null never does."""


class StreamOptions(BaseModel):
    """What a streamed answer carries besides its text.

    Attributes:
        include_usage: Token counts in a last chunk.
        continuous_usage_stats: And in every chunk, as far as the answer got (vLLM's name).
    """

    model_config = ConfigDict(strict=True)

    include_usage: bool = False
    continuous_usage_stats: bool = False


class JsonSchema(BaseModel):
    """What an answer must match."""

    content: dict[str, Any] = Field(alias="schema")


class PlainText(BaseModel):
    """Any answer."""

    type: Literal["text"]


class JsonObject(BaseModel):
    """An answer that is a JSON object."""

    type: Literal["json_object"]


class JsonOfSchema(BaseModel):
    """An answer that is JSON of a schema; it is always held to it, ``strict`` or not."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[PlainText | JsonObject | JsonOfSchema, Field(discriminator="type")]


class GenerationRequest(BaseModel):
    """What chat and plain completions have in common.

    Attributes:
        priority: Within its latency class; the lower, the earlier (as in vLLM).
        service_tier: ``flex`` for what nobody waits for.
        timeout: Seconds after which the caller does not care any more.
    """

    model_config = ConfigDict(strict=True, extra="allow")

    model: str
    max_tokens: int | None = Field(None, ge=1, lt=_INT32)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=-1, lt=_INT32)
    min_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    seed: int | None = Field(None, ge=-_INT64, lt=_INT64)
    stop: Annotated[
        _Stops, BeforeValidator(lambda stop: [stop] if isinstance(stop, str) else [] if stop is None else stop)
    ] = []
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    priority: int = Field(0, ge=-_INT32, lt=_INT32)
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    timeout: float | None = Field(None, gt=0, le=_WEEK_S, allow_inf_nan=False)
    ignore_eos: bool = False

    @property
    def answer_limit(self) -> int | None:
        """Tokens to generate at most, if the caller said."""
        return self.max_tokens

    @property
    def latency_class(self) -> LatencyClass:
        """Whether a person waits for it."""
        return LatencyClass.BATCH if self.service_tier == "flex" else LatencyClass.INTERACTIVE


class TextPart(BaseModel):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart]

    def plain(self) -> dict[str, str]:
        """What a chat template is given."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": text}


class ChatRequest(GenerationRequest):
    """Body of ``POST /v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, lt=_INT32)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)

    @property
    def answer_limit(self) -> int | None:
        """Tokens to generate at most, by either of its names."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def likeliest(self) -> int | None:
        """Likeliest tokens to tell of beside each; ``None`` to tell of none."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(GenerationRequest):
    """Body of ``POST /v1/completions``."""

    prompt: str | list[int]
    max_tokens: int | None = Field(16, ge=1, lt=_INT32)  # OpenAI's default for this endpoint
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)

    @property
    def likeliest(self) -> int | None:
        """Likeliest tokens to tell of beside each; ``None`` to tell of none."""
        return self.logprobs


AnyRequest = TypeVar("AnyRequest", bound=GenerationRequest)


def parse(kind: type[AnyRequest], body: bytes) -> AnyRequest:
    """Check a request's body.

    Raises:
        RequestError: With the first thing that is wrong.
    """
    try:
        request = kind.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error) from error
    for name, value in (request.model_extra or {}).items():
        if name in _NEUTRAL and value is not None and value not in _NEUTRAL[name]:
            raise RequestError(f"This engine does not serve {name}; leave it out.", code="unsupported_value", param=name)
    if request.stream_options is not None and not request.stream:
        raise RequestError("stream_options is for streams; set stream to true or leave it out.", param="stream_options")
    if isinstance(request, ChatRequest) and request.top_logprobs is not None and not request.logprobs:
        raise RequestError("top_logprobs needs logprobs; set logprobs to true or leave it out.", param="top_logprobs")
    return request


def _refusal(error: ValidationError) -> RequestError:
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return RequestError(f"The body is not valid JSON: {first['msg'].removeprefix('Invalid JSON: ')}.", code="invalid_json")
    if not first["loc"]:
        return RequestError("The body must be a JSON object.", code="invalid_json")
    field = str(first["loc"][0])
    return RequestError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}.", param=field)


def error_headers(error: RequestError) -> dict[str, str]:
    """What tells a client, and OpenAI's official one above all, whether and when to try again."""
    if error.retry_after_s is not None:
        return {"retry-after": str(ceil(error.retry_after_s)), "retry-after-ms": str(ceil(error.retry_after_s * 1000))}
    # Nobody waits any more for what was not ready in time.
    return {"x-should-retry": "false"} if error.status == 504 else {}


def error_body(error: RequestError) -> dict[str, Any]:
    """OpenAI's error object."""
    return {"error": {"message": str(error), "type": _kind(error.status), "param": error.param, "code": error.code}}


def _kind(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"
