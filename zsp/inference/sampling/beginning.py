"""Where chains begin: with a finite log density and gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from zsp.execution import checked
from zsp.inference.log_density import LogDensity

__all__ = ["find_beginning"]

N_TRIES = 100
"""Random beginnings that are tried for a chain whose log density is not finite."""


def find_beginning(
    log_density: LogDensity,
    density: Callable[[Tensor], tuple[Tensor, ...]],
    n_chains: int,
    init: Mapping[str, Any] | None,
    generator: torch.Generator,
) -> Tensor:
    """Positions [chain, D], unconstrained.

    Args:
        log_density: of the latents.
        density: from positions to log densities [chain] and gradients [chain, D].
        n_chains: the number of chains.
        init: latent name -> values to begin with, [chain, *shape]; default random positions.
        generator: of the random positions.

    Raises:
        ValueError: if the shapes do not fit, or the log density or its gradient is not finite there.
    """

    def is_good(position: Tensor) -> Tensor:
        value, gradient = density(position)[:2]
        return value.isfinite() & gradient.isfinite().all(-1)

    if init is not None:
        position = log_density.unconstrain(init)
        if position.shape[:-1] != (n_chains,):
            raise ValueError(
                f"init must hold a value for each of the {n_chains} chains, [chain, *shape], but its chain axes are "
                f"{list(position.shape[:-1])}."
            )
        good = is_good(position)
    else:
        position = log_density.initial(n_chains, generator=generator)
        good = is_good(position)
        for _ in range(N_TRIES):
            if good.all():
                break
            again = log_density.initial(n_chains, generator=generator)
            position = torch.where(good[:, None], position, again)
            good = is_good(position)
    if not good.all():
        _explain(log_density, position[~good][0], is_given=init is not None)
    return position


def _explain(log_density: LogDensity, position: Tensor, is_given: bool) -> None:
    value = log_density(position).item()
    where = "where init lets a chain begin" if is_given else f"in {N_TRIES} tries of a random beginning"
    try:
        with checked(), torch.no_grad():
            log_density.evaluate(position)
    except (ValueError, TypeError) as error:
        raise ValueError(f"the log density or its gradient is not finite {where}: {error}") from error
    raise ValueError(
        f"the log density ({value:g}) or its gradient is not finite {where}. Give a beginning with init={{...}}, or "
        "look for what is infinite in the model there."
    )
