"""How one unconstrained vector, a position, holds the values of all latents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zsp.checks.wording import dtype_name, quoted, suggestion
from zsp.inference.latents import Latent
from zsp.tensor_like import to_tensor

__all__ = ["Layout"]


class Layout:
    """The places of the latents in a position, in order.

    Args:
        latents: what is known of each.

    Attributes:
        latents: the same.
        names: of the latents.
        shapes: name -> shape of its value in one chain.
        sizes: name -> how many unconstrained numbers it is.
        n_dims: D, the length of a position.
        dtype: of positions.
        device: of positions.
    """

    def __init__(self, latents: Sequence[Latent]) -> None:
        self.latents = latents
        self.names = tuple(latent.name for latent in latents)
        self.shapes = {latent.name: latent.shape for latent in latents}
        self.sizes = {latent.name: latent.size for latent in latents}
        self.n_dims = sum(self.sizes.values())
        self.dtype = latents[0].dtype
        for latent in latents:
            self.dtype = torch.promote_types(self.dtype, latent.dtype)
        self.device = latents[0].device
        self._split = list(self.sizes.values())

    def unpack(self, position: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The names and unconstrained values of the latents, each of shape [*chain, *its unconstrained shape]."""
        pieces = position.split(self._split, -1) if len(self._split) > 1 else (position,)
        for latent, piece in zip(self.latents, pieces, strict=True):
            n_axes = len(latent.unconstrained_shape)
            if n_axes == 0:
                piece = piece.squeeze(-1)
            elif n_axes > 1:
                piece = piece.view(piece.shape[:-1] + latent.unconstrained_shape)
            yield latent.name, piece if latent.dtype == piece.dtype else piece.to(latent.dtype)

    def pack(self, parts: Iterable[Tensor]) -> Tensor:
        """The position with the given unconstrained values, one of each latent."""
        return torch.cat([_packed(latent, part) for latent, part in zip(self.latents, parts, strict=True)], -1)

    def values(self, values: Mapping[str, Any]) -> tuple[dict[str, Tensor], torch.Size]:
        """Values of all latents as tensors of the position's dtype, in order, and the shape of their chain axes.

        Raises:
            ValueError: if names or shapes do not fit.
        """
        for name in values:
            if name not in self.shapes:
                raise ValueError(f"{name!r} is no latent; they are {quoted(self.names)}.{suggestion(name, self.names)}")
        missing = [name for name in self.names if name not in values]
        if missing:
            raise ValueError(f"values are needed for all latents, but {quoted(missing)} has none.")
        given = {
            name: torch.as_tensor(to_tensor(values[name]), dtype=self.dtype, device=self.device) for name in self.names
        }
        chain = None
        for name, shape in self.shapes.items():
            own = given[name].shape
            leading = own[: len(own) - len(shape)]
            chain = leading if chain is None else chain
            if len(own) < len(shape) or own[len(own) - len(shape) :] != shape or leading != chain:
                raise ValueError(
                    f"the value given for {name!r} has shape {list(own)}, but [*chain, *{list(shape)}] is expected, "
                    f"with the same chain axes for all latents ({self.names[0]!r} has {list(chain)})."
                )
        assert chain is not None
        return given, chain

    def check(self, position: Tensor) -> None:
        """A position of the right length and dtype.

        Raises:
            ValueError: if the last axis is not D long.
            TypeError: if the dtype is not that of the latents.
        """
        if not position.dim() or position.shape[-1] != self.n_dims:
            raise ValueError(
                f"a position has {self.n_dims} unconstrained numbers in its last axis "
                f"({', '.join(f'{name}: {size}' for name, size in self.sizes.items())}), but got shape "
                f"{list(position.shape)}. log_density.unconstrain(values) makes one from values by name."
            )
        if position.dtype != self.dtype:
            raise TypeError(
                f"the position has dtype {dtype_name(position.dtype)}, but the latents have {dtype_name(self.dtype)}. "
                f"Convert it: position.to(torch.{dtype_name(self.dtype)})."
            )


def _packed(latent: Latent, value: Tensor) -> Tensor:
    """A latent's unconstrained value as a part of the position."""
    n_axes = len(latent.unconstrained_shape)
    return value.flatten(-n_axes) if n_axes else value.unsqueeze(-1)
