r"""What the operator says about projects, in ``DATA/projects.toml``: how much they may send, and whether text is kept.

::

    [default]
    quota_mb_per_minute = 600          # without it there is no quota

    [projects.acme]                    # what it does not say, [default] does
    content = "keep"                   # prompts and answers; "drop" unless said otherwise
    redact = ["email", "card"]         # in what is kept; every rule of redaction.py unless said otherwise
    redact_regex = ['EMP-\d{6}']
    page_origins = ["https://app.acme.example"]   # whose pages may say what they showed; none unless said
    page_mb_per_minute = 10            # of what they say; apart from the quota, because their key is for all to see
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from costspan_collector.errors import RulesError
from costspan_collector.security.quota import Quota
from costspan_collector.security.redaction import NAMES, Redaction
from costspan_collector.security.watched import Watched
from costspan_collector.settings import MIB

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = "projects.toml"

_ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?")


def _check_origin(text: str) -> str:
    if not _ORIGIN.fullmatch(text):
        raise ValueError(f"{text!r} is no origin: write it as a browser does, like https://app.acme.example")
    return text


_Origin = Annotated[str, AfterValidator(_check_origin)]


@dataclass(frozen=True, slots=True)
class Rule:
    """What holds for one project.

    Attributes:
        quota: How much it may send; None for any amount.
        keep: Makes prompt text fit to be kept; None when none is kept.
        page_origins: Origins whose pages may send beacons for it.
        page_quota: How much those may send; None for any amount.
    """

    quota: Quota | None = None
    keep: Redaction | None = None
    page_origins: frozenset[str] = frozenset()
    page_quota: Quota | None = None


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    quota_mb_per_minute: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    content: Literal["keep", "drop"] = "drop"
    redact: list[str] = list(NAMES)
    redact_regex: list[str] = []
    page_origins: list[_Origin] = []
    page_mb_per_minute: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10.0

    def rule(self) -> Rule:
        redaction = Redaction(self.redact, self.redact_regex)
        quota = Quota(int(self.quota_mb_per_minute * MIB)) if self.quota_mb_per_minute else None
        page_quota = Quota(int(self.page_mb_per_minute * MIB), setting="page_mb_per_minute")
        return Rule(quota, redaction if self.content == "keep" else None, frozenset(self.page_origins), page_quota)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    default: _Section = _Section()
    projects: dict[str, _Section] = {}


class _Book:
    """The rules of one version of the file."""

    def __init__(self, file: _File) -> None:
        self._default = file.default
        self._default.rule()
        self._page_origins = {origin for each in (file.default, *file.projects.values()) for origin in each.page_origins}
        said = {name: section.model_dump(exclude_unset=True) for name, section in file.projects.items()}
        self._rules = {name: file.default.model_copy(update=update).rule() for name, update in said.items()}

    def of(self, project: str) -> Rule:
        """A project's rule; each has a quota of its own."""
        if project not in self._rules:
            self._rules[project] = self._default.rule()
        return self._rules[project]

    def name_page_origin(self, origin: str) -> bool:
        """Whether pages of an origin may send to some project."""
        return origin in self._page_origins


class Rules:
    """Knows the rules in a data folder, and notices when they change; quotas then begin anew.

    Args:
        folder: The data folder. Without ``projects.toml`` in it there are no quotas, and no text is kept.

    Raises:
        RulesError: The file is wrong.
    """

    def __init__(self, folder: Path) -> None:
        self._book = Watched(folder / FILE, _read, _Book(_File()))

    def of(self, project: str) -> Rule:
        """What holds for a project."""
        return self._book().of(project)

    def name_page_origin(self, origin: str) -> bool:
        """Whether pages of an origin may send to some project."""
        return self._book().name_page_origin(origin)


def _read(path: Path) -> _Book:
    try:
        return _Book(_File.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))))
    except OSError as error:
        raise RulesError(f"{path} cannot be read ({error.strerror}): make it readable to this user") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RulesError(f"{path}: {where}: {first['msg']}; docs/security.md says what may be there") from error
    except (ValueError, RulesError) as error:
        raise RulesError(f"{path}: {error}") from error
