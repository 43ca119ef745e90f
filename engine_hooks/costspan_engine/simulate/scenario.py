"""Scenarios: a workload, the engine that serves it, and what happens to both, in one YAML file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from costspan.semconv import Cause
from costspan_engine.errors import CostspanEngineError, ModelError
from costspan_engine.settings import Policy
from costspan_engine.simulate.profiles import Model
from costspan_hooks.devices import GPUS

_LIBRARY = files("costspan_engine") / "simulate" / "scenarios"
_Z99 = 2.3263478740408408
"""The standard normal's 99th percentile."""

Positive: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Moment: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Count: TypeAlias = Annotated[int, Field(ge=1)]
Name: TypeAlias = Annotated[str, Field(min_length=1)]


def _known_gpu(name: str) -> str:
    if name not in GPUS:
        raise ValueError(f"no such GPU is known; name one of {', '.join(GPUS)}")
    return name


def _known_model(name: str) -> str:
    try:
        Model.find(name)
    except ModelError as error:
        raise ValueError(str(error)) from error
    return name


Gpu: TypeAlias = Annotated[str, AfterValidator(_known_gpu)]


class ScenarioError(CostspanEngineError):
    """A scenario that cannot be read; its text names the line, the field and what is allowed."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Constant(_Part):
    """Always so many tokens."""

    dist: Literal["constant"]
    value: Count


class Lognormal(_Part):
    """Tokens, told by two quantiles."""

    dist: Literal["lognormal"]
    median: Positive
    p99: Positive

    @model_validator(mode="after")
    def _ordered(self) -> Lognormal:
        if self.p99 < self.median:
            raise ValueError(f"p99 ({self.p99:g}) is below median ({self.median:g}); raise it")
        return self

    @property
    def sigma(self) -> float:
        """Standard deviation of the logarithm."""
        return math.log(self.p99 / self.median) / _Z99


Lengths: TypeAlias = Annotated[Constant | Lognormal, Field(discriminator="dist")]


class Poisson(_Part):
    """Arrivals that know nothing of each other, ``rate`` a second."""

    process: Literal["poisson"]
    rate: Positive


class Gamma(_Part):
    """A renewal process: gaps of mean ``1 / rate`` seconds and coefficient of variation ``cv``; above 1 it is bursty."""

    process: Literal["gamma"]
    rate: Positive
    cv: Positive


class Trace(_Part):
    """Recorded arrivals, with their lengths; a relative path is looked for beside the scenario."""

    process: Literal["trace"]
    file: Path
    format: Literal["azure", "mooncake", "servegen"]

    @field_validator("file")
    @classmethod
    def _beside(cls, file: Path, info: ValidationInfo) -> Path:
        return (info.context or Path()) / file


Arrivals: TypeAlias = Annotated[Poisson | Gamma | Trace, Field(discriminator="process")]


class Prefixes(_Part):
    """Beginnings that prompts share: each has ``tokens`` of one of ``groups``, before its own."""

    groups: Count
    tokens: Count


class Client(_Part):
    """How a tenant's callers behave.

    Attributes:
        abort_probability: Share of calls whose user presses stop.
        abort_after_tokens: After how many tokens read.
        timeout_s: How long a call may take in all; ``None`` for as long as it does.
        max_retries: Calls that follow one that timed out, at most.
        read_tokens_per_s: How fast an answer is read; ``None`` for as fast as it comes.
    """

    abort_probability: Share = 0.0
    abort_after_tokens: Count = 1
    timeout_s: Positive | None = None
    max_retries: Annotated[int, Field(ge=0)] = 0
    read_tokens_per_s: Positive | None = None


class Tenant(_Part):
    """A tenant's traffic. That of a trace brings its own lengths and prefixes."""

    name: Name
    arrivals: Arrivals
    prompt_tokens: Lengths | None = None
    output_tokens: Lengths | None = None
    prefix: Prefixes | None = None
    client: Client = Client()

    @model_validator(mode="after")
    def _whole(self) -> Tenant:
        lengths = {"prompt_tokens": self.prompt_tokens, "output_tokens": self.output_tokens}
        if isinstance(self.arrivals, Trace):
            if given := [name for name, value in {**lengths, "prefix": self.prefix}.items() if value]:
                raise ValueError(f"a trace brings its own lengths; remove {', '.join(given)}")
        elif missing := [name for name, value in lengths.items() if value is None]:
            raise ValueError(f"{' and '.join(missing)} must be given")
        return self


class Engine(_Part):
    """Equal replicas of the bundled engine. Without ``kv_blocks`` the cache is what fits beside the weights."""

    gpu: Gpu
    model: Annotated[str, AfterValidator(_known_model)]
    gpu_usd_per_hour: Positive
    replicas: Count = 1
    max_num_seqs: Count = 128
    max_batched_tokens: Count = 4096
    kv_blocks: Count | None = None
    block_size: Count = 16
    policy: Policy = Policy.FCFS
    prefix_cache: bool = True


class _Event(_Part):
    at_s: Moment


class Burst(_Event):
    """Requests that come all at once, or evenly over ``over_s`` seconds.

    Their callers behave like the tenant's others, unless ``client`` says otherwise.
    """

    kind: Literal["burst"]
    tenant: Name
    requests: Count
    prompt_tokens: Count
    output_tokens: Count
    over_s: Moment = 0.0
    client: Client | None = None


class RouteChange(_Event):
    """From here on a part of the traffic goes to one more replica, of another GPU."""

    kind: Literal["route_change"]
    share: Share
    gpu: Gpu


class FlushCache(_Event):
    """Every replica forgets its prefix cache."""

    kind: Literal["flush_cache"]


class ColdStart(_Event):
    """The first replica takes no more, ends what it has, and then starts anew, which takes so many seconds."""

    kind: Literal["cold_start"]
    seconds: Positive


class SlowEngine(_Event):
    """Every step takes so many times as long, for a while."""

    kind: Literal["slow_engine"]
    factor: Positive
    for_s: Positive


Event: TypeAlias = Annotated[Burst | RouteChange | FlushCache | ColdStart | SlowEngine, Field(discriminator="kind")]


class Verdict(_Part):
    """Something that the diagnosis must find; what is not said may be anything.

    Attributes:
        tenant: Who was slow.
        cause: Why.
        culprit: Because of whom; "" for nobody.
        from_s: The window that it finds overlaps this stretch.
        until_s: Its end.
    """

    tenant: Name
    cause: Cause
    culprit: str | None = None
    from_s: Moment = 0.0
    until_s: Moment = math.inf


class Expectation(_Part):
    """What the diagnosis must say.

    Attributes:
        found: Verdicts that must be there.
        only: Causes besides which there must be none; empty for an empty diagnosis, ``None`` for any.
    """

    found: list[Verdict] = []
    only: list[Cause] | None = None


class Scenario(_Part):
    """A scenario, as its file says."""

    name: Name
    about: str = ""
    seed: Annotated[int, Field(ge=0)] = 0
    duration_s: Positive
    engine: Engine
    tenants: Annotated[list[Tenant], Field(min_length=1)]
    events: list[Event] = []
    expect: Expectation | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Scenario:
        names = [tenant.name for tenant in self.tenants]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"tenant {twice!r} is there twice; give each a name of its own")
        if late := next((event for event in self.events if event.at_s >= self.duration_s), None):
            raise ValueError(f"the {late.kind} at {late.at_s:g} s comes after the end at {self.duration_s:g} s; move it")
        return self

    def reseeded(self, seed: int) -> Scenario:
        """The same with other draws.

        Raises:
            ScenarioError: The seed is below 0.
        """
        if seed < 0:
            raise ScenarioError(f"the seed is {seed}; it must be at least 0")
        return self.model_copy(update={"seed": seed})

    @classmethod
    def find(cls, name: str) -> Scenario:
        """A built-in scenario, or that of a file.

        Raises:
            ScenarioError: There is none, or it makes no sense.
        """
        if name in library():
            return cls.parse((_LIBRARY / f"{name}.yaml").read_text(encoding="utf-8"), name, Path())
        path = Path(name)
        try:
            return cls.parse(path.read_text(encoding="utf-8"), name, path.parent)
        except (OSError, UnicodeDecodeError) as error:
            raise ScenarioError(
                f"{name} is no readable file, and no built-in scenario: name one of {', '.join(library())}, or a YAML file"
            ) from error

    @classmethod
    def parse(cls, text: str, source: str, folder: Path) -> Scenario:
        """Read a scenario; traces are looked for from ``folder`` on.

        Raises:
            ScenarioError: It makes no sense.
        """
        try:
            root = yaml.compose(text, yaml.SafeLoader)
            raw = yaml.safe_load(text)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f" at line {mark.line + 1}" if mark else ""
            raise ScenarioError(f"{source} is no YAML{line} ({getattr(error, 'problem', error)}); mend it") from error
        if root is None or not isinstance(raw, dict):
            raise ScenarioError(f"{source} holds no scenario; it begins with name, duration_s, engine and tenants")
        try:
            return cls.model_validate(raw, context=folder)
        except ValidationError as error:
            raise ScenarioError(f"{source}, {_complaint(error.errors()[0], root)}") from error


def library() -> list[str]:
    """Names of the built-in scenarios."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _LIBRARY.iterdir() if entry.name.endswith(".yaml"))


def _complaint(problem: Any, root: yaml.Node) -> str:
    """The line, the field and what is wrong with it."""
    node, path = _place(root, problem["loc"])
    field = f"{path}: " if path else ""
    if problem["type"] == "extra_forbidden":
        parent, above = _place(root, problem["loc"][:-1])
        what = f"there is no {problem['loc'][-1]!r} in {above or 'a scenario'}; remove it or mend its spelling"
        return f"line {_line(parent, problem['loc'][-1])}: {what}"
    if problem["type"] == "missing":
        missing = ".".join(filter(None, (path, str(problem["loc"][-1]))))
        return f"line {node.start_mark.line + 1}: {missing} is missing; give it"
    text = str(problem["msg"]).removeprefix("Value error, ")
    given = f" (it is {problem['input']!r})" if isinstance(problem["input"], (str, int, float)) else ""
    return f"line {node.start_mark.line + 1}: {field}{text[:1].lower()}{text[1:]}{given}"


def _place(root: yaml.Node, location: Sequence[int | str]) -> tuple[yaml.Node, str]:
    """The innermost node on the way to a place, and its path; a place may name a union's choice, which is no node."""
    node, path = root, ""
    for step in location:
        if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node, path = node.value[step], f"{path}[{step}]"
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == step:
                    node, path = value, f"{path}.{step}" if path else str(step)
    return node, path


def _line(parent: yaml.Node, key: int | str) -> int:
    """Where a mapping has a key."""
    if isinstance(parent, yaml.MappingNode):
        return next((each.start_mark.line + 1 for each, _ in parent.value if each.value == key), parent.start_mark.line + 1)
    return parent.start_mark.line + 1
