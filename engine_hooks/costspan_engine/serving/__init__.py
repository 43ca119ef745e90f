"""OpenAI's API in front of an engine.

Read :mod:`~costspan_engine.serving.server` first, then :mod:`~costspan_engine.serving.desk` (what comes in) and
:mod:`~costspan_engine.serving.delivery` (what goes out).
"""
