r"""Discrete latents summed out exactly: a model whose log joint is the marginal over them.

.. math:: \log p(x, z) = \log \sum_k p(x, z, k)

with k all joint values of the enumerated nodes. Every row of their table (:mod:`zsp.inference.table`) is one execution
of the model, all of them at once under ``vmap``: model code never sees the rows, and what does not depend on k is
computed once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zsp.bayesian_net import BayesianNet
from zsp.checks.wording import net_name, quoted
from zsp.execution import can_read_values
from zsp.inference.elimination import Elimination, Execute, require_independent
from zsp.inference.table import TableValue
from zsp.meta_bayesian_net import MetaBayesianNet
from zsp.tensor_like import to_tensor
from zsp.variables import shape_key

__all__ = ["EnumeratedNet", "enumerate_latents"]


def enumerate_latents(
    meta_bn: MetaBayesianNet, names: str | Iterable[str], *, local: str | Iterable[str] = (), max_rows: int = 10_000
) -> EnumeratedNet:
    r"""A model with discrete latents summed out exactly: its log joint is :math:`\log \sum_k p(x, z, k)`.

    ::

        @zsp.meta_bayesian_net()
        def mixture(n):
            bn = zsp.BayesianNet()
            means = bn.normal("means", torch.zeros(3), std=5.0, group_ndims=1)
            k = bn.categorical("k", torch.zeros(n, 3), group_ndims=1)  # a label for each datum
            bn.normal("x", means[..., k.long()], std=1.0, group_ndims=1)
            return bn

        model = zsp.enumerate_latents(mixture(len(x)), "k", local="k")
        model({"means": means, "x": x})              # log p(means, x)
        model.posterior({"means": means, "x": x})    # {"k": p(k | means, x), of shape [n, 3]}

    The result stands wherever a model or a callable on a dict does: in ``elbo``, the importance-weighted objectives,
    ``is_loglikelihood``, under ``torch.func`` and ``torch.compile``; the latents that are left may be continuous.

    The table has a row for every joint value: the product of the nodes' numbers of values. Along batch axes the log
    joint has one term for each element, so that N data with a K-way latent each take K rows. Entries that are summed
    by ``group_ndims`` are one event, and n of them take :math:`K^n` rows, unless ``local`` says that they are
    independent of one another given all else, as labels of single data are beside global parameters. Whether elements
    and entries are independent is tried out at the first execution for given shapes.

    Args:
        meta_bn: the model.
        names: the nodes to sum out: bernoulli, categorical and onehot_categorical nodes, parents of one another or not.
        local: those of them whose grouped entries are independent given all other nodes. Nodes that depend on such an
            entry have its axes at the same place of their batch shapes.
        max_rows: the number of rows above which the table is refused.

    Returns:
        The marginal model, a module and a callable from a dict of values to the log joint.

    Raises:
        ValueError: if a name in ``local`` is not among ``names``; when it is first executed, if a node cannot be
            enumerated, the table would be too large, or elements of the batch or entries of local nodes are not
            independent.
    """
    return EnumeratedNet(meta_bn, names, local=local, max_rows=max_rows)


class EnumeratedNet(nn.Module):
    """A model with discrete latents summed out; made by :func:`enumerate_latents`.

    Args:
        meta_bn: the model.
        names: the nodes to sum out.
        local: those whose grouped entries are independent given all else.
        max_rows: the number of rows above which the table is refused.
    """

    def __init__(
        self,
        meta_bn: MetaBayesianNet,
        names: str | Iterable[str],
        *,
        local: str | Iterable[str] = (),
        max_rows: int = 10_000,
    ) -> None:
        super().__init__()
        if not isinstance(meta_bn, MetaBayesianNet):
            raise TypeError(
                f"enumerate_latents needs a MetaBayesianNet, but got {type(meta_bn).__name__}. Call the decorated "
                "function first: model = build_model(...)."
            )
        self.meta_bn = meta_bn
        self.names = (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))
        self.local = frozenset((local,) if isinstance(local, str) else local)
        self.max_rows = max_rows
        if not self.names:
            raise ValueError("enumerate_latents needs the name of at least one node to sum out.")
        if not self.local <= set(self.names):
            other = sorted(self.local - set(self.names))
            raise ValueError(f"local names {quoted(other)}, but the enumerated nodes are {quoted(self.names)}.")
        self._known: dict[Any, Elimination] = {}

    def forward(self, values: Mapping[str, Any]) -> Tensor:
        r"""The log joint :math:`\log \sum_k p(\text{values}, k)`.

        Args:
            values: node or input name -> value, for all stochastic nodes but the enumerated ones.

        Returns:
            A tensor of the model's batch shape.
        """
        return self._log_joint(values)

    def posterior(self, values: Mapping[str, Any]) -> dict[str, Tensor]:
        r"""The probabilities of each enumerated node's values given all others, :math:`p(k_j \mid \text{values})`.

        They are the derivatives of the log joint in the logarithms of factors, all 1, put on single values.

        Args:
            values: node or input name -> value, for all stochastic nodes but the enumerated ones.

        Returns:
            Name -> probabilities along a last axis of size K, in the order of ``dist.enumerate_support()`` (0, 1, ...),
            of shape batch + [K], axes that ``group_ndims`` sums included; without gradient.
        """
        elimination, execute = self._prepare(values, (), frozenset(), frozenset())
        with torch.enable_grad():
            like = _floating(values)
            factors = {
                name: like.new_zeros(shape, dtype=like.dtype, device=elimination.device).requires_grad_()
                for name, shape in elimination.factor_shapes.items()
            }
            total = elimination.log_joint(elimination.terms(execute, factors), is_scaled=False)
            gradients = torch.autograd.grad(total.sum(), list(factors.values()))
        return dict(zip(factors, gradients, strict=True))

    def materialize(self, values: Mapping[str, Any] | None = None, /, **more: Any) -> EnumeratedNet:
        """Execute the model once, so that all its variables exist; see :meth:`MetaBayesianNet.materialize`."""
        self.meta_bn.materialize(values, **more)
        return self

    def _log_joint(
        self,
        values: Mapping[str, Any],
        sample_shape: tuple[int, ...] = (),
        with_samples: frozenset[str] = frozenset(),
        excluded: frozenset[str] = frozenset(),
    ) -> Tensor:
        """The log joint where inference routines say which latents carry sample axes, and which to leave out."""
        elimination, execute = self._prepare(values, sample_shape, with_samples, excluded)
        return elimination.log_joint(elimination.terms(execute))

    def _prepare(
        self,
        values: Mapping[str, Any],
        sample_shape: tuple[int, ...],
        with_samples: frozenset[str],
        excluded: frozenset[str],
    ) -> tuple[Elimination, Execute]:
        given = [name for name in self.names if name in values]
        if given:
            raise ValueError(
                f"{quoted(given)} is given a value and enumerated. Leave it out of the values, or condition on it with "
                "the model itself."
            )
        like = _floating(values)

        def execute(digits: Mapping[str, Tensor]) -> BayesianNet:
            rows = {name: TableValue(name, digit, sample_shape, like) for name, digit in digits.items()}
            return self.meta_bn._execute(
                {**values, **rows}, sample_shape=sample_shape or None, with_samples=with_samples, excluded=excluded
            )

        if torch.compiler.is_compiling():
            return self._first(execute, len(sample_shape), excluded), execute
        key = (tuple(values), shape_key(values.values()), sample_shape, with_samples, excluded)
        elimination = self._known.get(key)
        if elimination is None:
            elimination = self._first(execute, len(sample_shape), excluded)
            if can_read_values():
                require_independent(elimination, execute)
                self._known[key] = elimination
        return elimination, execute

    def _first(self, execute: Execute, n_sample_axes: int, excluded: frozenset[str]) -> Elimination:
        """How to sum out, from one execution at the first value of every enumerated node."""
        bn = execute({name: torch.zeros((), dtype=torch.int64) for name in self.names})
        forgotten = [n.name for n in bn._stochastic_nodes() if not n.is_observed and n.name not in excluded]
        if forgotten:
            raise ValueError(
                f"{net_name(bn)} has the latents {quoted(forgotten)}, which are neither given a value nor enumerated. "
                f"The log joint needs values for all nodes but {quoted(self.names)}."
            )
        bn.log_joint()  # a checked net raises here where terms do not fit
        return Elimination.of(bn, self.names, self.local, n_sample_axes, self.max_rows)


def _floating(values: Mapping[str, Any]) -> Tensor:
    """A floating-point tensor among the values, whose dtype the others follow; one of torch's default dtype if none."""
    for value in map(to_tensor, values.values()):
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    return torch.zeros(())
