"""What is kept of a run's transitions."""

from __future__ import annotations

import numpy
from torch import Tensor

from zsp.inference.sampling.arrays import Array, library, to_torch
from zsp.inference.sampling.kernel import Transitions

__all__ = ["Store"]


class Store:
    """What is kept of the transitions of one part of a run: name -> [chain, draw, ...]."""

    def __init__(self, n_chains: int, n_draws: int, thin: int) -> None:
        self._n_chains, self._n_draws, self._thin = n_chains, n_draws, thin
        self.rows: dict[str, Tensor] = {}

    def add(self, number: Array, step: Array, chain: Array, ended: Transitions) -> None:
        """Keep transitions of a block: each of a chain that made it in a step, and numbered in its chain from 0."""
        is_kept = (number >= 0) & (number < self._n_draws * self._thin) & (number % self._thin == self._thin - 1)
        number, step, chain = number[is_kept], step[is_kept], chain[is_kept]
        slot = number // self._thin
        for name, values in {"position": ended.position, **ended.info._asdict()}.items():
            if name not in self.rows:
                shape = (self._n_chains, self._n_draws, *values.shape[2:])
                self.rows[name] = to_torch(values).new_zeros(shape)
            rows = self.rows[name]
            (rows.numpy() if library(values) is numpy else rows)[chain, slot] = values[step, chain]
