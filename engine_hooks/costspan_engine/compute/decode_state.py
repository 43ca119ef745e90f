"""What decoding sequences need for their next step, kept on the device from one step to the next.

A step leaves each row ready for the next one: its newest token and, one further, its place. All that travels to the device is
what a step cannot know: a sequence that came, one that left, a new block. So a CUDA graph of the step can be replayed over it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from costspan_engine.sequence import Sequence

_TOKEN, _PLACE, _TABLE = 0, 1, 2
"""Columns of a row: its newest token, the token's place in the sequence, and from there on its block table."""
_EMPTY = -1
"""The place of a row without a sequence."""
_UNKNOWN = -1
"""A token that is on the device and not yet on the host."""


class Inputs(NamedTuple):
    """One token of each row, as the model takes it; (rows,) each, but ``tables``, which is (rows, blocks)."""

    tokens: Tensor
    places: Tensor
    slots: Tensor
    tables: Tensor
    lengths: Tensor


class DecodeState:
    """Rows of decoding sequences on a device, and a copy on the host of what they hold.

    Args:
        rows: Sequences at most.
        blocks: Blocks of a sequence at most.
        block_size: Tokens in each.
        scratch: A block that is nobody's: rows without a sequence write there.
        device: Where the rows are.
    """

    def __init__(self, rows: int, blocks: int, block_size: int, scratch: int, device: torch.device) -> None:
        self._block_size, self._scratch = block_size, scratch
        self._host = np.zeros((rows, _TABLE + blocks), dtype=np.int32)
        self._host[:, _PLACE] = _EMPTY
        self._host[:, _TABLE] = scratch
        self._cells = torch.from_numpy(self._host).clone().to(device)
        self._rows: dict[Sequence, int] = {}
        self._tables: list[tuple[list[int], int]] = [([], 0)] * rows
        """The block list that a row's table was taken from, and how much of it."""

    # --- on the host -------------------------------------------------------------------------------------------------

    def update(self, decodes: list[Sequence]) -> list[int]:
        """Bring the device up to date for a step of these sequences; returns their rows: the first ones, in some order."""
        used = max(len(decodes), len(self._rows))
        if self._rows.keys() != set(decodes):
            self._rows = self._place(decodes)
        rows = [self._rows[seq] for seq in decodes]
        heads = np.tile(np.array([0, _EMPTY], dtype=np.int32), (used, 1))
        heads[rows, _TOKEN] = [seq.tokens[-1] for seq in decodes]
        heads[rows, _PLACE] = [seq.computed for seq in decodes]
        changed = np.argwhere(heads != self._host[:used, :_TABLE])
        cells = [row * self._host.shape[1] + column for row, column in changed.tolist()]
        self._host[:used, :_TABLE] = heads
        for seq, row in zip(decodes, rows, strict=True):
            cells += self._write_table(row, seq.blocks)
        for row in range(len(decodes), used):
            cells += self._write_table(row, [self._scratch])
        self._send(cells)
        # What the step is about to do to its rows.
        self._host[rows, _TOKEN] = _UNKNOWN
        self._host[rows, _PLACE] += 1
        return rows

    def learn(self, rows: list[int], tokens: list[int]) -> None:
        """Take down the tokens that the step left in its rows."""
        self._host[rows, _TOKEN] = tokens

    def _place(self, decodes: list[Sequence]) -> dict[Sequence, int]:
        """Everybody in the first rows: whoever can stays where it is, the others take what is free."""
        count = len(decodes)
        staying = {seq: row for seq in decodes if (row := self._rows.get(seq, count)) < count}
        free = iter(sorted(set(range(count)) - set(staying.values())))
        return {seq: staying[seq] if seq in staying else next(free) for seq in decodes}

    def _write_table(self, row: int, blocks: list[int]) -> range:
        """Put into the host's copy what is new; returns the cells."""
        table, known = self._tables[row]
        # A sequence's list grows in place while it holds its blocks, and is another list when it holds others.
        if table is not blocks:
            known = 0
        self._tables[row] = blocks, len(blocks)
        self._host[row, _TABLE + known : _TABLE + len(blocks)] = blocks[known:]
        first = row * self._host.shape[1] + _TABLE
        return range(first + known, first + len(blocks))

    def _send(self, cells: list[int]) -> None:
        if not cells:
            return
        changes = torch.from_numpy(np.stack([np.array(cells), self._host.ravel()[cells].astype(np.int64)]))
        if self._cells.is_cuda:
            changes = changes.pin_memory().to(self._cells.device, non_blocking=True)
        self._cells.view(-1).index_copy_(0, changes[0], changes[1].int())

    # --- on the device -----------------------------------------------------------------------------------------------

    def inputs(self, rows: int) -> Inputs:
        """What the model takes for the first so many rows."""
        tokens, places, tables = self._cells[:rows, _TOKEN], self._cells[:rows, _PLACE], self._cells[:rows, _TABLE:]
        inside = places.clamp(min=0)
        blocks = tables.gather(1, (inside // self._block_size).long().unsqueeze(1)).squeeze(1)
        slots = blocks.long() * self._block_size + inside % self._block_size
        return Inputs(tokens, inside, slots, tables, places + 1)

    def advance(self, chosen: Tensor) -> None:
        """Go on by one token in each of the first ``len(chosen)`` rows that have a sequence."""
        places = self._cells[: len(chosen), _PLACE]
        taken = places.ne(_EMPTY).int()
        self._cells[: len(chosen), _TOKEN] = chosen.int() * taken  # 0 elsewhere, as the host believes
        places += taken
