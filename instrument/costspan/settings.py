"""What an app sets: by argument, by ``COSTSPAN_*`` variable, by OpenTelemetry's that means the same, or by default."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from costspan.errors import SettingError

_ON = frozenset({"1", "true", "yes", "on"})
_OFF = frozenset({"", "0", "false", "no", "off"})


@dataclass(frozen=True)
class Settings:
    """Where spans go, and who the process works for.

    Attributes:
        project: Boundary of keys and rows.
        endpoint: Base URL of the collector.
        api_key: Key for the collector, "" for none.
        service: Name of the app; "" to leave it to ``OTEL_RESOURCE_ATTRIBUTES``.
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
        """The arguments that are given, completed from the environment.

        Raises:
            SettingError: One is no text, or is empty and must not be.
        """
        return cls(
            project=_needed("project", _pick("project", project, "COSTSPAN_PROJECT", default="default")),
            endpoint=_needed("endpoint", _pick("endpoint", endpoint, "COSTSPAN_ENDPOINT", default="http://127.0.0.1:4318")),
            api_key=api_key_or_environment(api_key),
            service=_pick("service", service, "COSTSPAN_SERVICE", "OTEL_SERVICE_NAME"),
            tenant=_pick("tenant", tenant, "COSTSPAN_TENANT"),
            feature=_pick("feature", feature, "COSTSPAN_FEATURE"),
        )


def api_key_or_environment(api_key: str | None) -> str:
    """The key that is given, else ``COSTSPAN_API_KEY``, else ""."""
    return _pick("API key", api_key, "COSTSPAN_API_KEY")


def is_disabled() -> bool:
    """Whether :func:`costspan.init` is to do nothing: ``COSTSPAN_DISABLED=1``, or ``OTEL_SDK_DISABLED=true`` for all of it.

    Raises:
        SettingError: ``COSTSPAN_DISABLED`` says neither yes nor no.
    """
    said = os.environ.get("COSTSPAN_DISABLED", "").strip().lower()
    if said not in _ON | _OFF:
        raise SettingError(f"COSTSPAN_DISABLED is {said!r}: say 1 to switch costspan off, 0 to leave it on")
    return said in _ON or os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def is_strict() -> bool:
    """Whether errors of costspan's own are raised instead of logged: ``COSTSPAN_STRICT=1``, for tests."""
    return os.environ.get("COSTSPAN_STRICT") == "1"


def _pick(what: str, argument: object, *variables: str, default: str = "") -> str:
    """The argument, else the first variable that says something: as in OpenTelemetry, an empty one says nothing."""
    if argument is None:
        said = (os.environ.get(variable, "").strip() for variable in variables)
        argument = next(filter(None, said), default)
    if not isinstance(argument, str):
        raise SettingError(f"the {what} is of type {type(argument).__name__}: give a string")
    if not is_unicode(argument):
        raise SettingError(f"the {what} is not Unicode, and cannot be sent")
    return argument.strip()


def _needed(what: str, value: str) -> str:
    if not value:
        raise SettingError(f"the {what} is empty: leave it out for the default, or name one")
    return value


def is_unicode(text: str) -> bool:
    """Whether it can be sent: a variable whose bytes are not UTF-8, or a path, is text to Python and not to others."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
