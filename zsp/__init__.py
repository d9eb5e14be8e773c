"""zsp: Bayesian nets, declared in plain PyTorch, and inference for them.

    model function --@meta_bayesian_net--> MetaBayesianNet --observe(x=...)--> BayesianNet --log_joint()--> Tensor
"""

import importlib as _importlib
from types import ModuleType as _ModuleType

from zsp import distributions
from zsp.bayesian_net import BayesianNet
from zsp.checks import NodeError, diagnose
from zsp.execution import checked
from zsp.inference import ELBO, History, elbo, fit, is_loglikelihood
from zsp.meta_bayesian_net import MetaBayesianNet, meta_bayesian_net
from zsp.node import StochasticTensor
from zsp.registration import register_distribution
from zsp.variables import ReusableFunction, module, parameter, reuse_variables

__all__ = [
    "ELBO",
    "BayesianNet",
    "History",
    "MetaBayesianNet",
    "NodeError",
    "ReusableFunction",
    "StochasticTensor",
    "checked",
    "diagnose",
    "distributions",
    "elbo",
    "fit",
    "is_loglikelihood",
    "meta_bayesian_net",
    "module",
    "parameter",
    "register_distribution",
    "reuse_variables",
]

__version__ = "0.1.0.dev0"

_ON_DEMAND = ("datasets", "graph", "models", "plots")


def __getattr__(name: str) -> _ModuleType:
    """``zsp.graph`` and the other modules that most programs do without are imported when they are first named."""
    if name in _ON_DEMAND:
        return _importlib.import_module(f"zsp.{name}")
    raise AttributeError(f"module 'zsp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_ON_DEMAND])
