"""The gate of the intake: who may send a payload, to which project, and whether there is room in its quota."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from costspan_collector.security.access import Access
from costspan_collector.security.rules import Rule, Rules

_DEFAULT_PROJECT = "default"


@dataclass(frozen=True, slots=True)
class Admission:
    """A payload that was let in.

    Attributes:
        project: The project it is for.
        only: The only project that rows in it may name; "" for any.
        rule: What holds for the project.
    """

    project: str
    only: str
    rule: Rule

    def charge(self, size: int) -> None:
        """Count the payload's bytes, unpacked, against the project's quota."""
        if self.rule.quota:
            self.rule.quota.charge(size)


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
        return Admission(project, grant.project, rule)
