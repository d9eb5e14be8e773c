"""Inference: objectives and their estimators, evaluation, and the training loop."""

from zsp.inference.ais import AIS, AISResult
from zsp.inference.draws import Draws
from zsp.inference.enumeration import EnumeratedNet, enumerate_latents
from zsp.inference.fit import History, fit
from zsp.inference.log_density import LogDensity
from zsp.inference.predict import predict
from zsp.inference.sampling.chees import ChEES
from zsp.inference.sampling.hmc import HMC
from zsp.inference.sampling.mams import MAMS
from zsp.inference.sampling.mclmc import MCLMC
from zsp.inference.sampling.mcmc import mcmc
from zsp.inference.sampling.nuts import NUTS
from zsp.inference.variational.elbo import ELBO, elbo
from zsp.inference.variational.gaussian import full_rank, mean_field
from zsp.inference.variational.importance import is_loglikelihood
from zsp.inference.variational.importance_weighted import (
    ImportanceWeightedObjective,
    importance_weighted_objective,
    iw_objective,
    renyi,
)
from zsp.inference.variational.klpq import KLpq, klpq
from zsp.inference.variational.laplace import LaplaceApproximation, laplace
from zsp.inference.variational.moving_mean import MovingMean
from zsp.inference.variational.relaxation import Relaxation
from zsp.inference.variational.wake_sleep import sleep_cost

__all__ = [
    "AIS",
    "ELBO",
    "HMC",
    "MAMS",
    "MCLMC",
    "NUTS",
    "AISResult",
    "ChEES",
    "Draws",
    "EnumeratedNet",
    "History",
    "ImportanceWeightedObjective",
    "KLpq",
    "LaplaceApproximation",
    "LogDensity",
    "MovingMean",
    "Relaxation",
    "elbo",
    "enumerate_latents",
    "fit",
    "full_rank",
    "importance_weighted_objective",
    "is_loglikelihood",
    "iw_objective",
    "klpq",
    "laplace",
    "mcmc",
    "mean_field",
    "predict",
    "renyi",
    "sleep_cost",
]
