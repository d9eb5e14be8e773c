r"""Mixtures of logistic variables rounded to pixel levels (Salimans et al. 2017, arXiv:1701.05517, equation 2)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions.constraints import integer_interval, real_vector
from torch.nn.functional import logsigmoid
from typing_extensions import Unpack

from zsp.distributions.lean import Lean, Parameter
from zsp.distributions.node_type import DiscreteOptions, node_type
from zsp.distributions.tensors import open_uniform

__all__ = ["DiscretizedLogisticMixture", "discretized_logistic_mixture_node"]


def _log_one_minus_exp(log_w: Tensor) -> Tensor:
    """``log(1 - exp(-w))`` of the logarithm of w."""
    is_small = log_w < -10
    small, large = torch.where(is_small, log_w, -10.0), torch.where(is_small, 0.0, log_w)
    return torch.where(is_small, small - small.exp() / 2, (-torch.expm1(-large.exp())).log())


class DiscretizedLogisticMixture(Lean):
    r"""Levels 0, ..., n - 1 of a mixture of K logistic variables on [-1, 1]; the two end levels take the tails.

    Args:
        logits: unnormalised log weights, shape [..., K].
        loc: means, on the scale where level x is at 2 x / (n - 1) - 1, shape [..., K].
        log_scale: log scales on the same scale, shape [..., K].
        n_levels: n, 256 for 8-bit images.
    """

    logits = Parameter(event_dim=1)
    loc = Parameter(event_dim=1)
    log_scale = Parameter(event_dim=1)
    _logits: Tensor
    _loc: Tensor
    _log_scale: Tensor

    def __init__(self, logits: Tensor, loc: Tensor, log_scale: Tensor, n_levels: int = 256) -> None:
        self._set(logits=logits, loc=loc, log_scale=log_scale)
        self._n_levels = n_levels

    @property
    def support(self) -> Any:  # type: ignore[override]
        """The levels 0, 1, ..., n - 1."""
        return integer_interval(0, self._n_levels - 1)

    def sample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """Levels in the dtype of the parameters, of shape sample_shape + batch."""
        with torch.no_grad():
            shape = self._shape(sample_shape)
            # the largest of logits + Gumbel noise is a draw of the component
            gumbel = -(-open_uniform((*shape, self._logits.shape[-1]), self._logits).log()).log()
            component = (self._logits + gumbel).argmax(-1, keepdim=True)
            loc = self._loc.expand(gumbel.shape).gather(-1, component).squeeze(-1)
            log_scale = self._log_scale.expand(gumbel.shape).gather(-1, component).squeeze(-1)
            value = loc + log_scale.exp() * open_uniform(shape, self._loc).logit()
            return ((value + 1) * (0.5 * (self._n_levels - 1))).round().clamp(0, self._n_levels - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of the levels ``value``, of any dtype."""
        last = self._n_levels - 1
        value = value.to(self._loc.dtype).unsqueeze(-1)
        scale, offset = self._log_scale.exp(), 2 * value / last - 1 - self._loc
        # sigma(b) - sigma(a) = sigma(b) sigma(-a) (1 - e^{a - b}); of the lowest level only sigma(b), of the highest
        # only sigma(-a)
        below = torch.where(value < last, logsigmoid((offset + 1 / last) / scale), 0.0)
        above = torch.where(value > 0, logsigmoid((1 / last - offset) / scale), 0.0)
        width = _log_one_minus_exp(math.log(2 / last) - self._log_scale)
        log_p = below + above + torch.where((value > 0) & (value < last), width, 0.0)
        return torch.logsumexp(self._logits.log_softmax(-1) + log_p, -1)


@node_type(
    logits=real_vector,
    loc=real_vector,
    logscale=real_vector,
    hint="A value is a pixel level 0, 1, ..., n_levels - 1; for intensities in [0, 1] multiply by 255 and round.",
)
def discretized_logistic_mixture_node(
    logits: Tensor, loc: Tensor, logscale: Tensor, n_levels: int = 256, **options: Unpack[DiscreteOptions]
) -> DiscretizedLogisticMixture:
    r"""Mixture of K discretised logistics over pixel levels 0, ..., n - 1.

    .. math:: p(x) = \sum_k \pi_k \Bigl[\sigma\Bigl(\frac{y + \frac1{n - 1} - m_k}{s_k}\Bigr)
              - \sigma\Bigl(\frac{y - \frac1{n - 1} - m_k}{s_k}\Bigr)\Bigr], \quad y = \frac{2 x}{n - 1} - 1

    with the first term 1 at the highest level and the second 0 at the lowest. One value is one channel of one pixel:
    parameters [..., height, width, channel, K] give batch [..., height, width, channel], summed by ``group_ndims=3``.
    (The paper's channels of a pixel share a component and depend on one another; here they are independent.)

    Args:
        logits: unnormalised :math:`\log\pi`, shape [..., K].
        loc: m, on the scale [-1, 1], shape [..., K].
        logscale: :math:`\log s`, on the same scale, shape [..., K].
        n_levels: n, 256 for 8-bit images.

    Reference: Salimans et al. 2017, arXiv:1701.05517, equation 2.
    """
    return DiscretizedLogisticMixture(logits, loc, logscale, n_levels)
