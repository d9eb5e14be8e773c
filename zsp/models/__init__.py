"""Ready models, one a file; read one before you write its cousin."""

from zsp.models.bayesian_module import bayesian
from zsp.models.dark_knowledge import DarkKnowledge
from zsp.models.likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    GammaNoiseLikelihood,
    LearntNoiseLikelihood,
    Likelihood,
    NormalLikelihood,
)
from zsp.models.vae import VAE, build_vae, generator
from zsp.models.variational_layers import ESTIMATORS, VariationalLayer
from zsp.models.variational_module import variational
from zsp.models.weight_divergences import (
    GaussianDivergence,
    LogUniformDivergence,
    ScaleMixtureDivergence,
    WeightDivergence,
)
from zsp.models.weight_priors import (
    EmpiricalPrior,
    GammaPrecisionPrior,
    GaussianPrior,
    HierarchicalPrior,
    HorseshoePrior,
    LaplacePrior,
    WeightPrior,
)

__all__ = [
    "ESTIMATORS",
    "VAE",
    "BernoulliLikelihood",
    "CategoricalLikelihood",
    "DarkKnowledge",
    "EmpiricalPrior",
    "GammaNoiseLikelihood",
    "GammaPrecisionPrior",
    "GaussianDivergence",
    "GaussianPrior",
    "HierarchicalPrior",
    "HorseshoePrior",
    "LaplacePrior",
    "LearntNoiseLikelihood",
    "Likelihood",
    "LogUniformDivergence",
    "NormalLikelihood",
    "ScaleMixtureDivergence",
    "VariationalLayer",
    "WeightDivergence",
    "WeightPrior",
    "bayesian",
    "build_vae",
    "generator",
    "variational",
]
