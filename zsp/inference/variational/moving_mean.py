r"""A moving mean of learning signals, the baseline of a score-function estimator.

.. math:: m_t = \frac{\sum_{s \le t} \rho^{t - s} \, \bar l_s}{\sum_{s \le t} \rho^{t - s}}
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zsp.execution import can_read_values

__all__ = ["MovingMean"]


class MovingMean(nn.Module):
    r"""Exponentially weighted mean of the learning signals of past steps, one for each node that needs it.

    A module that the user owns, so that it is saved, moved and synchronised with the rest::

        moving_mean = zsp.MovingMean(decay=0.8)
        cost = zsp.elbo(model, {"x": x}, variational=q).reinforce(moving_mean=moving_mean)

    A step subtracts the mean of the steps *before* it, and then adds its own signal, averaged over samples and batch:
    the baseline does not depend on the draws that it is a baseline for, so that the gradient has no bias at any step.
    The mean is of the steps seen, not pulled towards 0 at the start. In evaluation mode (``.eval()``) it is kept as it
    is. Nodes are told apart by their order of declaration; a module serves one net.

    Args:
        decay: the weight of the past, in [0, 1).

    Raises:
        ValueError: for a decay outside [0, 1).

    Reference: Mnih and Gregor 2014, arXiv:1402.0030, section 2.3.
    """

    mean: Tensor
    weight: Tensor

    def __init__(self, decay: float = 0.8) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), the weight of the past in the mean, but got {decay}.")
        self.decay = decay
        self.register_buffer("mean", torch.zeros(1))  # one for each node
        self.register_buffer("weight", torch.zeros(()))  # of the steps seen: 1 - decay ** steps

    def forward(self, signals: Sequence[Tensor]) -> list[Tensor]:
        """The means of the steps before, one for each signal; in training mode the signals are then added.

        Args:
            signals: one a node, of any shape.

        Returns:
            Scalars, as many as there are signals; 0 at the first step.
        """
        if len(signals) != self.mean.numel():
            self._hold(signals)
        with torch.no_grad():
            before = self.mean / self.weight.clamp_min(torch.finfo(self.weight.dtype).tiny)
            if self.training:
                current = torch.stack([signal.detach().mean() for signal in signals]).to(self.mean)
                self.mean.lerp_(current, 1 - self.decay)
                self.weight.lerp_(torch.ones_like(self.weight), 1 - self.decay)
        return list(before.unbind())

    def _hold(self, signals: Sequence[Tensor]) -> None:
        """Make room for as many nodes as there are, at the first step only."""
        if not can_read_values():
            raise RuntimeError(
                f"this MovingMean holds {self.mean.numel()} mean(s), but {len(signals)} nodes need one each, and "
                "buffers are not made inside compiled or transformed code. Run one step eagerly before."
            )
        if self.weight.item() != 0:
            raise ValueError(
                f"this MovingMean has followed {self.mean.numel()} node(s), but is used with a net in which "
                f"{len(signals)} nodes need a baseline. Give each net a MovingMean of its own."
            )
        self.mean = self.mean.new_zeros(len(signals))

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):  # type: ignore[no-untyped-def]
        saved = state_dict.get(f"{prefix}mean")
        if saved is not None and saved.shape != self.mean.shape:
            self.mean = self.mean.new_zeros(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """The decay."""
        return f"decay={self.decay}"
