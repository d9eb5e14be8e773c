r"""The chi-squared distribution, gamma with shape n / 2 and rate 1 / 2."""

from __future__ import annotations

from torch import Tensor
from torch.distributions.constraints import positive
from typing_extensions import Unpack

from zsp.distributions.gamma import Gamma
from zsp.distributions.node_type import ReparameterizedOptions, Value, node_type

__all__ = ["Chi2", "chi2_node"]


class Chi2(Gamma):
    r"""The sum of n squared standard normal variables, :math:`\Gamma(n / 2, 1 / 2)`; n need not be whole.

    Args:
        df: degrees of freedom n, a tensor or a number.
    """

    def __init__(self, df: Value) -> None:
        super().__init__(df / 2, 0.5)

    @property
    def df(self) -> Tensor:
        """Degrees of freedom, of the batch shape."""
        return 2 * self.concentration


@node_type(df=positive, hint="A chi-squared value is positive.", scipy="chi2(df)")
def chi2_node(df: Value, **options: Unpack[ReparameterizedOptions]) -> Chi2:
    r"""Chi-squared node with mean n.

    .. math:: \log p(x) = (\tfrac n2 - 1)\log x - \tfrac x2 - \tfrac n2\log 2 - \log\Gamma(\tfrac n2), \quad x > 0

    Args:
        df: n > 0, the degrees of freedom.
    """
    return Chi2(df)
