"""The gate of the intake: who may send a payload, to which project, and whether there is room in its quota."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from costspan_collector.errors import DeniedError
from costspan_collector.security.access import Access
from costspan_collector.security.exposure import is_loopback
from costspan_collector.security.quota import Quota
from costspan_collector.security.rules import Rule, Rules

_DEFAULT_PROJECT = "default"


@dataclass(frozen=True, slots=True)
class Admission:
    """A payload that was let in.

    Attributes:
        project: The project it is for.
        only: The only project that rows in it may name; "" for any.
        rule: What holds for the project.
        quota: What its bytes count against; None for nothing.
    """

    project: str
    only: str
    rule: Rule
    quota: Quota | None = None

    def charge(self, size: int) -> None:
        """Count the payload's bytes, unpacked, against the project's quota."""
        if self.quota:
            self.quota.charge(size)


class Gate:
    """Keys and quotas of one collector.

    Args:
        access: Its keys.
        folder: Its data folder.

    Raises:
        RulesError: The file of rules in it is wrong.
    """

    def __init__(self, access: Access, folder: Path) -> None:
        self._access = access
        self._rules = Rules(folder)

    def admit(self, token: str | None, named: str) -> Admission:
        """Let a payload in.

        Args:
            token: The key that came with it, if any.
            named: The project that it says it is for, "" when it says none.

        Raises:
            DeniedError: 401 or 403, the key does not allow it.
            QuotaError: 429, the project has used up its quota.
        """
        grant = self._access.grant(token)
        project = grant.to_write(named) or _DEFAULT_PROJECT
        rule = self._rules.of(project)
        if rule.quota:
            rule.quota.check(project)
        return Admission(project, grant.project, rule, rule.quota)

    def admit_page(self, token: str, named: str, origin: str) -> Admission:
        """Let a page's beacon in.

        Args:
            token: The key in it, "" for none.
            named: The project in it, "" for none.
            origin: The origin of the page, as its browser says.

        Raises:
            DeniedError: 401 or 403, the key does not allow it, or pages of that origin may not send to the project.
            QuotaError: 429, the project's pages have used up their quota, which is apart from the project's.
        """
        if not token and self._access.guarded():
            raise DeniedError(401, "this collector asks for a key: give costspan.init one that was created with --pages")
        project = self._access.grant(token).to_page(named) or _DEFAULT_PROJECT
        rule = self._rules.of(project)
        if origin not in rule.page_origins and not self._is_at_home(origin):
            raise DeniedError(
                403, f"pages of {origin[:100]!r} may not send to {project!r}: add the origin to page_origins in projects.toml"
            )
        if rule.page_quota:
            rule.page_quota.check(project)
        return Admission(project, project, rule, rule.page_quota)

    def welcomes(self, origin: str) -> bool:
        """Whether pages of an origin may send to some project: what a browser asks before it is known which."""
        return self._rules.name_page_origin(origin) or self._is_at_home(origin)

    def _is_at_home(self, origin: str) -> bool:
        """Whether a page comes from this machine to a collector that asks nobody."""
        return not self._access.guarded() and is_loopback(_host(origin))


def _host(origin: str) -> str:
    try:
        return urlsplit(origin).hostname or ""
    except ValueError:
        return ""
