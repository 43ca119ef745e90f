"""costspan_hooks: what an engine tells costspan, and the ledger that is kept from it."""

from costspan_hooks.observer import Admission, Burst, Chunk, EngineObserver, Removal, RequestInfo, Step

__all__ = ["Admission", "Burst", "Chunk", "EngineObserver", "Removal", "RequestInfo", "Step"]
