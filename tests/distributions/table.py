"""One row a node method: parameters, a reference density from scipy or a closed form, and where it is delicate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.special as sp
import scipy.stats as st
import torch
from torch import Tensor

import zsp.distributions
from zsp.distributions import NodeType

__all__ = ["CASES", "Case"]

Parameters = dict[str, Any]


def t(value: Any) -> Tensor:
    """A float64 tensor."""
    return torch.as_tensor(value, dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """A row of the test table.

    Attributes:
        name: the node method.
        parameters: batch shape [3], in ZhuSuan's names; tensors without an axis are shared by the batch.
        reference: (parameters of one batch element as numpy, values [n, *event]) -> log density [n].
        event_shape: of one value.
        discrete: whether values are whole numbers.
        cdf: (parameters of one batch element, values) -> distribution function; for continuous scalars.
        cells: (parameters of one batch element) -> all likely values, for discrete variables.
        exact_path: a draw is a monotone function of one noise, so that its derivative is known draw by draw.
        scored: the support does not depend on the parameters, so that the score has mean zero.
        outside: a value outside the support.
        extremes: pairs (parameters, value) with finite log density and derivatives, also in float32.
        values: given values [n, 3, *event] where there are no draws.
        smooth_value: the log density is differentiable in the value.
    """

    name: str
    parameters: Parameters
    reference: Callable[[Any, np.ndarray], np.ndarray]
    event_shape: tuple[int, ...] = ()
    discrete: bool = False
    cdf: Callable[[Any, np.ndarray], np.ndarray] | None = None
    cells: Callable[[Any], np.ndarray] | None = None
    exact_path: bool = True
    scored: bool = True
    outside: Any = None
    extremes: tuple[tuple[Parameters, Any], ...] = field(default=())
    values: Tensor | None = None
    smooth_value: bool = True

    @property
    def row(self) -> NodeType:
        """The row of zsp's table."""
        return getattr(zsp.distributions, f"{self.name}_node").node_type

    def build(self, dtype: torch.dtype = torch.float64, device: Any = None, **changed: Any) -> Any:
        """The distribution."""
        return self.row.build(**self.cast({**self.parameters, **changed}, dtype, device))

    @staticmethod
    def cast(parameters: Parameters, dtype: torch.dtype, device: Any = None) -> Parameters:
        """The floating-point parameters in another dtype."""
        return {
            name: value.to(device=device, dtype=dtype if value.is_floating_point() else None)
            if isinstance(value, Tensor)
            else value
            for name, value in parameters.items()
        }

    def element(self, index: int) -> Parameters:
        """The parameters of one element of the batch, as numpy."""
        return {
            name: (value[index] if value.dim() else value).numpy() if isinstance(value, Tensor) else value
            for name, value in self.parameters.items()
        }

    def draws(self, n: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
        """Values [n, 3, *event], drawn with a fixed seed."""
        if self.values is not None:
            return self.values[:n].to(dtype)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build(dtype).sample((n,))


def _norm(p: Any) -> Any:
    return st.norm(p["mean"], p["std"] if p.get("std") is not None else np.exp(p["logstd"]))


def _binary(n: int) -> Callable[[Any], np.ndarray]:
    return lambda p: np.arange(n)


def _bin_concrete(p: Any, x: np.ndarray) -> np.ndarray:
    # equation 24 of Maddison et al. 2017 as it is printed, with alpha = exp(logits)
    alpha, temperature = np.exp(p["logits"]), p["temperature"]
    density = temperature * alpha * x ** (-temperature - 1) * (1 - x) ** (-temperature - 1)
    return np.log(density / (alpha * x**-temperature + (1 - x) ** -temperature) ** 2)


def _concrete(p: Any, x: np.ndarray) -> np.ndarray:
    # equation 10 of Maddison et al. 2017 as it is printed, with alpha = exp(logits)
    alpha, temperature, n = np.exp(p["logits"]), p["temperature"], x.shape[-1]
    ratio = alpha * x ** (-temperature - 1) / (alpha * x**-temperature).sum(-1, keepdims=True)
    return sp.gammaln(n) + (n - 1) * np.log(temperature) + np.log(ratio).sum(-1)


def _inverse_gamma(p: Any) -> Any:
    return st.invgamma(p["alpha"], scale=p["beta"])


def _mvn(covariance: Callable[[Any], np.ndarray]) -> Callable[[Any, np.ndarray], np.ndarray]:
    return lambda p, x: np.atleast_1d(st.multivariate_normal(p["mean"], covariance(p)).logpdf(x))


def _multinomial_cells(n: int, k: int) -> np.ndarray:
    grid = np.stack(np.meshgrid(*[np.arange(n + 1)] * k, indexing="ij"), -1).reshape(-1, k)
    return grid[grid.sum(-1) == n]


MEAN, STD = t([0.0, -1.5, 2.0]), t([1.0, 0.3, 2.5])
LOGITS = t([[0.0, 1.0, -1.0], [2.0, 0.0, -0.5], [-1.0, -1.0, 0.3]])
TRIL = t([[[1.0, 0.0], [0.5, 0.8]], [[0.4, 0.0], [-0.3, 1.5]], [[2.0, 0.0], [0.0, 0.7]]])
VECTOR = t([[0.0, 1.0], [-1.0, 0.5], [3.0, 0.0]])
COV = TRIL @ TRIL.mT
U_TRIL = t([[[1.0, 0.0], [0.5, 0.8]], [[0.7, 0.0], [-0.3, 1.5]], [[2.0, 0.0], [0.2, 0.7]]])
V_TRIL = t(np.tril(np.array([[1.0, 0, 0], [0.3, 0.5, 0], [-0.2, 0.1, 2.0]])) * np.array([1.0, 1.3, 0.6])[:, None, None])
MATRIX = t(np.linspace(-1, 1, 18).reshape(3, 2, 3))
POSITIVE, POSITIVE2 = t([0.6, 1.0, 4.0]), t([1.5, 0.4, 2.0])
BAGS = torch.randint(0, 4, (8, 3, 3), generator=torch.Generator().manual_seed(0)).double()
LAST = 1 - 2.0**-24

CASES = (
    Case(
        "normal",
        {"mean": MEAN, "std": STD},
        lambda p, x: _norm(p).logpdf(x),
        cdf=lambda p, x: _norm(p).cdf(x),
        outside=float("nan"),
        extremes=(({"mean": t(0.0), "std": t(1.0)}, 1e15), ({"mean": t(0.0), "logstd": t(-30.0)}, 0.0)),
    ),
    Case(
        "fold_normal",
        {"mean": MEAN, "logstd": STD.log()},
        lambda p, x: np.logaddexp(_norm(p).logpdf(x), _norm(p).logpdf(-x)),
        cdf=lambda p, x: _norm(p).cdf(x) - _norm(p).cdf(-x),
        exact_path=False,
        outside=-0.1,
        extremes=(
            ({"mean": t(-1e3), "std": t(1.0)}, 1e3),
            ({"mean": t(1e3), "std": t(1.0)}, 0.0),
            ({"mean": t(0.0), "std": t(1.0)}, 0.0),
        ),
    ),
    Case(
        "half_normal",
        {"scale": STD},
        lambda p, x: st.halfnorm(scale=p["scale"]).logpdf(x),
        cdf=lambda p, x: st.halfnorm(scale=p["scale"]).cdf(x),
        outside=-0.1,
        extremes=(({"scale": t(1.0)}, 0.0), ({"scale": t(1.0)}, 1e15)),
    ),
    Case(
        "log_normal",
        {"mean": MEAN, "std": t([1.0, 0.3, 0.5])},
        lambda p, x: st.lognorm(p["std"], scale=np.exp(p["mean"])).logpdf(x),
        cdf=lambda p, x: st.lognorm(p["std"], scale=np.exp(p["mean"])).cdf(x),
        outside=-0.1,
        extremes=(({"mean": t(0.0), "std": t(1.0)}, 1e-30), ({"mean": t(0.0), "std": t(1.0)}, 1e30)),
    ),
    Case(
        "uniform",
        {"minval": t([-1.0, 0.0, 2.0]), "maxval": t([1.0, 0.5, 30.0])},
        lambda p, x: st.uniform(p["minval"], p["maxval"] - p["minval"]).logpdf(x),
        cdf=lambda p, x: st.uniform(p["minval"], p["maxval"] - p["minval"]).cdf(x),
        scored=False,
        smooth_value=False,
        outside=31.0,
        extremes=(({"minval": t(0.0), "maxval": t(1.0)}, 1.0), ({"minval": t(0.0), "maxval": t(1.0)}, 0.0)),
    ),
    Case(
        "laplace",
        {"loc": MEAN, "scale": STD},
        lambda p, x: st.laplace(p["loc"], p["scale"]).logpdf(x),
        cdf=lambda p, x: st.laplace(p["loc"], p["scale"]).cdf(x),
        outside=float("nan"),
        extremes=(({"loc": t(0.0), "scale": t(1.0)}, 1e30), ({"loc": t(0.0), "scale": t(1.0)}, 0.0)),
    ),
    Case(
        "logistic",
        {"loc": MEAN, "scale": STD},
        lambda p, x: st.logistic(p["loc"], p["scale"]).logpdf(x),
        cdf=lambda p, x: st.logistic(p["loc"], p["scale"]).cdf(x),
        outside=float("nan"),
        extremes=(({"loc": t(0.0), "scale": t(1.0)}, 1e30), ({"loc": t(0.0), "scale": t(1.0)}, -1e30)),
    ),
    Case(
        "student_t",
        {"df": t([2.5, 45.0, 1000.0]), "loc": MEAN, "scale": STD},
        lambda p, x: st.t(p["df"], p["loc"], p["scale"]).logpdf(x),
        cdf=lambda p, x: st.t(p["df"], p["loc"], p["scale"]).cdf(x),
        exact_path=False,
        outside=float("nan"),
        extremes=(({"df": t(3.0)}, 1e15), ({"df": t(1e-3)}, 1.0), ({"df": t(1e7)}, 1.0)),
    ),
    Case(
        "half_cauchy",
        {"scale": STD},
        lambda p, x: st.halfcauchy(scale=p["scale"]).logpdf(x),
        cdf=lambda p, x: st.halfcauchy(scale=p["scale"]).cdf(x),
        outside=-0.1,
        extremes=(({"scale": t(1.0)}, 0.0), ({"scale": t(1.0)}, 1e15)),
    ),
    Case(
        "exponential",
        {"rate": STD},
        lambda p, x: st.expon(scale=1 / p["rate"]).logpdf(x),
        cdf=lambda p, x: st.expon(scale=1 / p["rate"]).cdf(x),
        outside=-0.1,
        extremes=(({"rate": t(1.0)}, 0.0), ({"rate": t(1.0)}, 1e30)),
    ),
    Case(
        "gamma",
        {"alpha": POSITIVE, "beta": POSITIVE2},
        lambda p, x: st.gamma(p["alpha"], scale=1 / p["beta"]).logpdf(x),
        cdf=lambda p, x: st.gamma(p["alpha"], scale=1 / p["beta"]).cdf(x),
        outside=-0.5,
        extremes=(
            ({"alpha": t(1.0), "beta": t(2.0)}, 0.0),
            ({"alpha": t(1e-3), "beta": t(1.0)}, 1e-37),
            ({"alpha": t(3.0), "beta": t(1.0)}, 1e30),
        ),
    ),
    Case(
        "inverse_gamma",
        {"alpha": POSITIVE, "beta": POSITIVE2},
        lambda p, x: _inverse_gamma(p).logpdf(x),
        cdf=lambda p, x: _inverse_gamma(p).cdf(x),
        exact_path=False,
        outside=0.0,
        extremes=(({"alpha": t(1.0), "beta": t(2.0)}, 1e30), ({"alpha": t(1.0), "beta": t(2.0)}, 1e-15)),
    ),
    Case(
        "beta",
        {"alpha": POSITIVE, "beta": POSITIVE2},
        lambda p, x: st.beta(p["alpha"], p["beta"]).logpdf(x),
        cdf=lambda p, x: st.beta(p["alpha"], p["beta"]).cdf(x),
        exact_path=False,
        outside=1.1,
        extremes=(
            ({"alpha": t(1.0), "beta": t(1.0)}, 0.0),
            ({"alpha": t(1.0), "beta": t(1.0)}, 1.0),
            ({"alpha": t(1e-3), "beta": t(1e-3)}, 1e-37),
            ({"alpha": t(0.5), "beta": t(0.5)}, LAST),
        ),
    ),
    Case(
        "dirichlet",
        {"alpha": t([[0.6, 1.0, 4.0], [1.0, 1.0, 1.0], [2.0, 0.3, 0.7]])},
        lambda p, x: np.array([st.dirichlet(p["alpha"]).logpdf(v / v.sum()) for v in x]),
        event_shape=(3,),
        outside=[0.5, 0.4, 0.2],
        extremes=(({"alpha": t([1.0, 1.0, 1.0])}, [0.0, 0.0, 1.0]), ({"alpha": t([1e-3, 1.0])}, [1e-37, 1.0])),
    ),
    Case(
        "bernoulli",
        {"logits": t([0.0, -2.0, 1.5])},
        lambda p, x: st.bernoulli(sp.expit(p["logits"])).logpmf(x),
        discrete=True,
        cells=_binary(2),
        outside=0.5,
        extremes=tuple(({"logits": t(logit)}, x) for logit in (-1e3, 0.0, 1e3) for x in (0.0, 1.0)),
    ),
    Case(
        "categorical",
        {"logits": LOGITS},
        lambda p, x: sp.log_softmax(p["logits"])[x.astype(int)],
        discrete=True,
        cells=_binary(3),
        outside=3.0,
        extremes=(({"logits": t([0.0, 1e3])}, 0.0), ({"logits": t([0.0, -torch.inf])}, 0.0)),
    ),
    Case(
        "onehot_categorical",
        {"logits": LOGITS},
        lambda p, x: sp.log_softmax(p["logits"])[x.argmax(-1)],
        event_shape=(3,),
        discrete=True,
        cells=lambda p: np.eye(3),
        outside=[1.0, 1.0, 0.0],
        extremes=(({"logits": t([0.0, 1e3])}, [1.0, 0.0]), ({"logits": t([0.0, -torch.inf])}, [1.0, 0.0])),
    ),
    Case(
        "binomial",
        {"logits": t([0.0, -2.0, 1.5]), "n_experiments": torch.tensor([4, 10, 7])},
        lambda p, x: st.binom(int(p["n_experiments"]), sp.expit(p["logits"])).logpmf(x),
        discrete=True,
        cells=lambda p: np.arange(int(p["n_experiments"]) + 1),
        outside=11.0,
        extremes=(
            *tuple(({"logits": t(logit), "n_experiments": 5}, x) for logit in (-1000.0, 1000.0) for x in (0.0, 5.0)),
            ({"logits": t(-torch.inf), "n_experiments": 5}, 0.0),
        ),
    ),
    Case(
        "multinomial",
        {"logits": LOGITS, "n_experiments": 4},
        lambda p, x: np.array([st.multinomial(4, sp.softmax(p["logits"])).logpmf(v) for v in x]),
        event_shape=(3,),
        discrete=True,
        cells=lambda p: _multinomial_cells(4, 3),
        outside=[1.0, 1.0, 1.0],
        extremes=(
            ({"logits": t([0.0, 1e3]), "n_experiments": 2}, [0.0, 2.0]),
            ({"logits": t([0.0, -torch.inf]), "n_experiments": 2}, [2.0, 0.0]),
            ({"logits": t([0.0, 0.0]), "n_experiments": None}, [0.0, 0.0]),
        ),
    ),
    Case(
        "unnormalized_multinomial",
        {"logits": LOGITS},
        lambda p, x: (x * sp.log_softmax(p["logits"])).sum(-1),
        event_shape=(3,),
        discrete=True,
        values=BAGS,
        outside=[0.5, 1.0, 1.0],
        extremes=(({"logits": t([0.0, 1e3])}, [0.0, 2.0]), ({"logits": t([0.0, -torch.inf])}, [2.0, 0.0])),
    ),
    Case(
        "poisson",
        {"rate": t([0.5, 3.0, 12.0])},
        lambda p, x: st.poisson(p["rate"]).logpmf(x),
        discrete=True,
        cells=_binary(60),
        outside=1.5,
        extremes=(({"rate": t(0.0)}, 0.0), ({"rate": t(1e-30)}, 3.0), ({"rate": t(1e6)}, 0.0)),
    ),
    Case(
        "bin_concrete",
        {"temperature": t([0.7, 1.0, 1.5]), "logits": t([0.0, -2.0, 1.5])},
        _bin_concrete,
        cdf=lambda p, x: sp.expit(p["temperature"] * sp.logit(x) - p["logits"]),
        outside=0.0,
        extremes=(
            ({"temperature": t(0.1), "logits": t(0.0)}, 1e-37),
            ({"temperature": t(0.1), "logits": t(1e3)}, LAST),
        ),
    ),
    Case(
        "concrete",
        {"temperature": t(0.8), "logits": LOGITS},
        _concrete,
        event_shape=(3,),
        outside=[0.0, 0.5, 0.5],
        extremes=(({"temperature": t(0.1), "logits": t([0.0, 1e3])}, [1e-37, 1.0]),),
    ),
    Case(
        "exp_concrete",
        {"temperature": t([0.8, 1.0, 1.4]), "logits": LOGITS},
        lambda p, y: _concrete(p, np.exp(y)) + y.sum(-1),
        event_shape=(3,),
        outside=[0.0, -1.0, -1.0],
        extremes=(({"temperature": t(0.1), "logits": t([0.0, 1e3])}, [-1e4, 0.0]),),
    ),
    Case(
        "multivariate_normal",
        {"mean": VECTOR, "cov": COV},
        _mvn(lambda p: p["cov"]),
        event_shape=(2,),
        outside=[float("nan"), 0.0],
        extremes=(({"mean": t([0.0, 0.0]), "precision": t([[1.0, 0.0], [0.0, 1e6]])}, [1e6, 0.0]),),
    ),
    Case(
        "multivariate_normal_cholesky",
        {"mean": VECTOR, "cov_tril": TRIL},
        _mvn(lambda p: p["cov_tril"] @ p["cov_tril"].T),
        event_shape=(2,),
        outside=[float("nan"), 0.0],
        extremes=(({"mean": t([0.0, 0.0]), "cov_tril": t([[1e-6, 0.0], [0.0, 1e6]])}, [0.0, 1e15]),),
    ),
    Case(
        "matrix_variate_normal_cholesky",
        {"mean": MATRIX, "u_tril": U_TRIL, "v_tril": V_TRIL},
        lambda p, x: st.matrix_normal(p["mean"], p["u_tril"] @ p["u_tril"].T, p["v_tril"] @ p["v_tril"].T).logpdf(x),
        event_shape=(2, 3),
        outside=[[float("nan"), 0.0, 0.0], [0.0, 0.0, 0.0]],
        extremes=(({"mean": t([[0.0]]), "u_tril": t([[1e-6]]), "v_tril": t([[1.0]])}, [[1e6]]),),
    ),
    Case(
        "empirical",
        {"batch_shape": (3,), "value_shape": (2,)},
        lambda p, x: np.zeros(len(x)),
        event_shape=(2,),
        values=torch.linspace(-1, 1, 48, dtype=torch.float64).reshape(8, 3, 2),
        outside=[float("nan"), 0.0],
        smooth_value=False,
    ),
    Case(
        "delta",
        {"value": MEAN},
        lambda p, x: np.where(x == p["value"], 0.0, -np.inf),
        scored=False,
        outside=0.25,
        smooth_value=False,
    ),
    Case(
        "flat",
        {"shape": (3, 2), "support": torch.distributions.constraints.real_vector},
        lambda p, x: np.zeros(len(x)),
        event_shape=(2,),
        values=torch.linspace(-1, 1, 48, dtype=torch.float64).reshape(8, 3, 2),
        outside=[float("nan"), 0.0],
        smooth_value=False,
    ),
)

SAMPLE_ONLY = frozenset({"implicit"})
"""Node methods without a density; they have tests of their own."""
