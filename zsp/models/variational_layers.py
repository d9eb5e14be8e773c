r"""Linear and convolutional layers with Gaussian weights, and three ways to draw their outputs.

.. math:: w \sim \mathrm{N}(\mu, \sigma^2), \quad h = w * x + b

A shared draw of the weights makes the data of a mini-batch correlated, so that the gradient's variance does not fall
with the mini-batch's size. Local reparameterisation and flipout give each datum noise of its own, at the cost of two
products.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from zsp.models.weight_divergences import GaussianDivergence, WeightDivergence

__all__ = ["ESTIMATORS", "VariationalLayer"]

ESTIMATORS = ("local", "flipout", "shared")

_CONVOLUTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: functional.conv1d,
    nn.Conv2d: functional.conv2d,
    nn.Conv3d: functional.conv3d,
}


class VariationalLayer(nn.Module):
    r"""A linear or convolutional layer whose weights and biases are independent Gaussians.

    Every call draws: the layer is as random when it predicts as when it is trained.

    The estimators, for one datum x of a mini-batch:

    - "local": the output is drawn from its own Gaussian, of mean :math:`\mu * x` and variance :math:`\sigma^2 * x^2`.
      Exact for a linear layer on vectors. The positions of a convolution (or further axes before a linear layer's
      last one) are drawn independently, although they share their weights, as is usual.
    - "flipout": :math:`\mu * x + r \circ ((\sigma \circ \epsilon) * (s \circ x))` with :math:`\epsilon` shared by the
      mini-batch and random signs s (one for each input channel) and r (for each output channel) of each datum: every
      datum's weights have their own law, and its positions share them.
    - "shared": one draw of the weights for the mini-batch, Bayes by backprop.

    Args:
        layer: nn.Linear, nn.Conv1d, nn.Conv2d or nn.Conv3d (zero padding): its values are the means to begin with.
        std: the standard deviation to begin with.
        divergence: from the prior.
        estimator: "local", "flipout" or "shared".

    Attributes:
        weight_mean: means, of the shape of the layer's weight.
        weight_logstd: log standard deviations.
        bias_mean: likewise for the bias; None where the layer has none.
        bias_logstd: likewise.

    Raises:
        TypeError: for another layer.
        ValueError: for an unknown estimator, a padding mode other than zeros, or a standard deviation that is not
            positive.

    Reference: Kingma et al. 2015, arXiv:1506.02557, section 2.2; Wen et al. 2018, arXiv:1803.04386, section 3;
        Blundell et al. 2015, arXiv:1505.05424, section 3.2.
    """

    bias_mean: nn.Parameter | None
    bias_logstd: nn.Parameter | None

    def __init__(
        self,
        layer: nn.Module,
        *,
        std: float = 0.05,
        divergence: WeightDivergence | None = None,
        estimator: str = "local",
    ) -> None:
        super().__init__()
        if not VariationalLayer.takes(layer):
            raise TypeError(
                f"VariationalLayer takes nn.Linear, nn.Conv1d, nn.Conv2d or nn.Conv3d, but got {type(layer).__name__}."
            )
        if estimator not in ESTIMATORS:
            raise ValueError(f"estimator must be one of {', '.join(map(repr, ESTIMATORS))}, got {estimator!r}.")
        if not 0 < std < math.inf:
            raise ValueError(f"std must be a positive number, got {std!r}.")
        if getattr(layer, "padding_mode", "zeros") != "zeros":
            raise ValueError(
                f"VariationalLayer pads with zeros only, but the layer has padding_mode={layer.padding_mode!r}."
            )
        self.estimator = estimator
        self.divergence = GaussianDivergence() if divergence is None else divergence
        self._convolution = _CONVOLUTIONS.get(type(layer))
        self._options = {
            name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups") if self._convolution
        }
        weight = layer.get_parameter("weight").detach()
        self.weight_mean = nn.Parameter(weight.clone())
        self.weight_logstd = nn.Parameter(torch.full_like(weight, math.log(std)))
        self.bias_mean = self.bias_logstd = None
        if layer.bias is not None:
            bias = layer.get_parameter("bias").detach()
            self.bias_mean = nn.Parameter(bias.clone())
            self.bias_logstd = nn.Parameter(torch.full_like(bias, math.log(std)))

    @staticmethod
    def takes(layer: nn.Module) -> bool:
        """Whether a layer is of a kind that can be made variational."""
        return type(layer) is nn.Linear or type(layer) in _CONVOLUTIONS

    def forward(self, x: Tensor) -> Tensor:
        """A draw of the output.

        Args:
            x: shape [n, ...], as for the layer itself; each of the n has weights of its own, unless "shared".

        Returns:
            Outputs, shape [n, ...].
        """
        if self.estimator == "shared":
            bias = None
            if self.bias_mean is not None and self.bias_logstd is not None:
                bias = _draw(self.bias_mean, self.bias_logstd)
            return self._apply_weight(x, _draw(self.weight_mean, self.weight_logstd), bias)
        mean = self._apply_weight(x, self.weight_mean, self.bias_mean)
        return mean + (self._local_noise(x) if self.estimator == "local" else self._flipout_noise(x, mean))

    def kl(self) -> Tensor:
        """The divergence of weights and biases from the prior in nats, a scalar (of some priors an estimate)."""
        divergence = self.divergence(self.weight_mean, self.weight_logstd)
        if self.bias_mean is not None and self.bias_logstd is not None:
            divergence = divergence + self.divergence(self.bias_mean, self.bias_logstd)
        return divergence

    def _apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self._convolution is None:
            return functional.linear(x, weight, bias)
        return self._convolution(x, weight, bias, **self._options)

    def _local_noise(self, x: Tensor) -> Tensor:
        bias_variance = None if self.bias_logstd is None else (2 * self.bias_logstd).exp()
        variance = self._apply_weight(x.square(), (2 * self.weight_logstd).exp(), bias_variance)
        is_certain = variance <= 0  # inputs that are all zero, where the square root has no derivative
        std = torch.where(is_certain, 0.0, torch.where(is_certain, 1.0, variance).sqrt())
        return std * torch.randn_like(std)

    def _flipout_noise(self, x: Tensor, mean: Tensor) -> Tensor:
        perturbation = self.weight_logstd.exp() * torch.randn_like(self.weight_logstd)
        noise = self._apply_weight(x * self._signs(x), perturbation, None) * self._signs(mean)
        if self.bias_logstd is not None:
            noise = noise + self._over_channels(self.bias_logstd.exp(), mean) * torch.randn_like(self._signs(mean))
        return noise

    def _signs(self, x: Tensor) -> Tensor:
        """A random sign for each channel of each datum, of a shape that broadcasts over its positions."""
        n_channels = x.shape[-1] if self._convolution is None else x.shape[1]
        signs = 2 * torch.randint(2, (x.shape[0], n_channels), dtype=x.dtype, device=x.device) - 1
        return self._over_channels(signs, x)

    def _over_channels(self, values: Tensor, like: Tensor) -> Tensor:
        """Values [..., channel] in a shape that broadcasts over the positions of ``like``."""
        n_positions = like.dim() - 2
        if self._convolution is not None:
            return values.reshape(*values.shape, *[1] * n_positions)
        return values.reshape(*values.shape[:-1], *[1] * n_positions, values.shape[-1])

    def extra_repr(self) -> str:
        """What print shows."""
        return f"{list(self.weight_mean.shape)}, estimator={self.estimator!r}, divergence={self.divergence!r}"


def _draw(mean: Tensor, logstd: Tensor) -> Tensor:
    return mean + logstd.exp() * torch.randn_like(mean)
