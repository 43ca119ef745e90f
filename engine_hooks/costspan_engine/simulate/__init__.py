"""The engine on a virtual clock: the real scheduler and block manager, and an executor that predicts instead of computing.

It needs no PyTorch, and imports none.
"""
