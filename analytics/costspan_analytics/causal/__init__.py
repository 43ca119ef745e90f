"""Causal blame: what was recorded, replayed through the engine's own scheduler with and without a tenant (docs/ledger.md)."""

from costspan_analytics.causal.answer import Answer, causal_answer, causal_answers
from costspan_analytics.causal.effect import Effect, effect
from costspan_analytics.causal.fidelity import Fidelity
from costspan_analytics.causal.recording import Recording
from costspan_analytics.causal.shapley import Shapley

__all__ = ["Answer", "Effect", "Fidelity", "Recording", "Shapley", "causal_answer", "causal_answers", "effect"]
