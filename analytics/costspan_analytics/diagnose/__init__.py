"""Incidents: who was slow when, why, and because of whom, without being told where to look."""

from costspan_analytics.diagnose.verdicts import Diagnosis, Finding

__all__ = ["Diagnosis", "Finding"]
