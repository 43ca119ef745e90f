"""costspan_hooks: what an engine tells costspan, and the ledger that is kept from it."""

from costspan_hooks.observer import Admission, Chunk, EngineObserver, Removal, RequestInfo, Step

__all__ = ["Admission", "Chunk", "EngineObserver", "Removal", "RequestInfo", "Step"]
