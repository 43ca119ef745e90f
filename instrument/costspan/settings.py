"""What an app sets: by argument, else by ``COSTSPAN_*`` variable, else by default."""

from __future__ import annotations

import os
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Settings:
    """Where spans go, and who the process works for.

    Attributes:
        project: Boundary of keys and rows.
        endpoint: Base URL of the collector.
        api_key: Key for the collector, "" for none.
        service: Name of the app.
        tenant: Whose traffic, where no unit of work says otherwise; "" for nobody's in particular.
        feature: Part of the app, likewise.
    """

    project: str
    endpoint: str
    api_key: str = field(repr=False)
    service: str
    tenant: str
    feature: str

    @classmethod
    def read(
        cls,
        *,
        project: str | None = None,
        endpoint: str | None = None,
        api_key: str | None = None,
        service: str | None = None,
        tenant: str | None = None,
        feature: str | None = None,
    ) -> Settings:
        """The arguments that are given, completed from the environment."""
        return cls(
            project=_pick(project, "COSTSPAN_PROJECT", "default"),
            endpoint=_pick(endpoint, "COSTSPAN_ENDPOINT", "http://127.0.0.1:4318"),
            api_key=api_key_or_environment(api_key),
            service=_pick(service, "COSTSPAN_SERVICE", "unknown_service"),
            tenant=_pick(tenant, "COSTSPAN_TENANT", ""),
            feature=_pick(feature, "COSTSPAN_FEATURE", ""),
        )


def api_key_or_environment(api_key: str | None) -> str:
    """The key that is given, else ``COSTSPAN_API_KEY``, else ""."""
    return _pick(api_key, "COSTSPAN_API_KEY", "")


def is_strict() -> bool:
    """Whether errors of costspan's own are raised instead of logged: ``COSTSPAN_STRICT=1``, for tests."""
    return os.environ.get("COSTSPAN_STRICT") == "1"


def _pick(argument: str | None, variable: str, default: str) -> str:
    value = argument if argument is not None else os.environ.get(variable, default)
    return value.strip()
