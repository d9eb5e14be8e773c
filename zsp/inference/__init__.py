"""Inference: objectives and their estimators, evaluation, and the training loop."""

from zsp.inference.fit import History, fit
from zsp.inference.variational.elbo import ELBO, elbo
from zsp.inference.variational.importance import is_loglikelihood

__all__ = ["ELBO", "History", "elbo", "fit", "is_loglikelihood"]
