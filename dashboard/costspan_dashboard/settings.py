"""What the dashboard is told, and what it tells Streamlit."""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import MappingProxyType

STORE, PROJECT = "COSTSPAN_STORE", "COSTSPAN_PROJECT"
DEFAULT_STORE = "http://127.0.0.1:8123"

STREAMLIT = MappingProxyType(
    {
        "server.address": "127.0.0.1",
        "server.headless": "true",  # opens no browser, asks for no e-mail address
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "browser.serverAddress": "127.0.0.1",
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        "theme.base": "light",
        "theme.primaryColor": "#3f6fa3",
        "theme.backgroundColor": "#ffffff",
        "theme.secondaryBackgroundColor": "#f4f6f8",
        "theme.textColor": "#1f2733",
        "theme.borderColor": "#dfe3e8",
        "theme.baseRadius": "6px",
    }
)
"""Streamlit's own settings: loopback, no telemetry, a light theme."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the dashboard reads, by ``COSTSPAN_STORE`` and ``COSTSPAN_PROJECT``.

    Attributes:
        store: ClickHouse's HTTP address.
        project: Which project is shown first; "" for the first there is.
    """

    store: str
    project: str

    @classmethod
    def read(cls) -> Settings:
        """From the environment."""
        return cls(os.environ.get(STORE, DEFAULT_STORE), os.environ.get(PROJECT, ""))

    def environment(self) -> dict[str, str]:
        """The process's environment with these settings in it."""
        return {**os.environ, STORE: self.store, PROJECT: self.project}
