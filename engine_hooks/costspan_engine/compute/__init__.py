"""Batches on a device: the executor on PyTorch, on a CPU or a GPU, and how logits become tokens.

Read :mod:`~costspan_engine.compute.torch_executor` first, then :mod:`~costspan_engine.compute.layout` and
:mod:`~costspan_engine.compute.sampler`. What only a GPU needs is in ``decode_lane``, ``decode_state``, ``gpu_spans`` and
``paged_kernel``.
"""
