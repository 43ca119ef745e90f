"""The models: their shapes, their folders, their arithmetic.

Read :mod:`~costspan_engine.models.model` first; the rest is what it is made of, and how its weights come in.
"""
