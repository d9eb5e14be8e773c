"""What is kept of a run's transitions."""

from __future__ import annotations

import numpy
from torch import Tensor

from zsp.inference.sampling.arrays import Array, library, to_torch
from zsp.inference.sampling.kernel import Rows

__all__ = ["Store"]


class Store:
    """What is kept of the transitions of one part of a run: name -> [chain, draw, ...]."""

    def __init__(self, n_chains: int, n_draws: int, thin: int) -> None:
        self._n_chains, self._n_draws, self._thin = n_chains, n_draws, thin
        self.rows: dict[str, Tensor] = {}

    def add(self, number: Array, made: Rows) -> None:
        """Keep transitions, each numbered in its chain from 0."""
        is_kept = (number >= 0) & (number < self._n_draws * self._thin) & (number % self._thin == self._thin - 1)
        slot, chain = number[is_kept] // self._thin, made.chain[is_kept]
        for name, values in {"position": made.position, **made.info._asdict()}.items():
            if name not in self.rows:
                self.rows[name] = to_torch(values).new_zeros((self._n_chains, self._n_draws, *values.shape[1:]))
            rows = self.rows[name]
            (rows.numpy() if library(values) is numpy else rows)[chain, slot] = values[is_kept]
