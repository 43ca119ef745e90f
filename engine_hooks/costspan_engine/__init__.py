"""The bundled serving engine: continuous batching over a paged KV cache, behind an OpenAI-compatible server.

Read it in this order: :mod:`~costspan_engine.sequence`, :mod:`~costspan_engine.block_manager`,
:mod:`~costspan_engine.scheduler`, :mod:`~costspan_engine.engine`, and then the two ends of it:
:mod:`~costspan_engine.executor` (how a batch is computed) and :mod:`~costspan_engine.serving.server` (how requests come in).
"""
