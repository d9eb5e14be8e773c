"""The distributions of zsp: classes for use anywhere, and the table of node methods.

A class follows ``torch.distributions`` (``log_prob``, ``sample``, ``rsample``, ...) with torch's argument names. A node
method has ZhuSuan's argument names. One line of :class:`NodeMethods` is one method of :class:`zsp.BayesianNet`, with a
signature that type checkers and editors read.
"""

from zsp.distributions import kl  # noqa: F401  (divergences, registered by the import)
from zsp.distributions.bernoulli import Bernoulli, bernoulli_node
from zsp.distributions.beta import Beta, Dirichlet, beta_node, dirichlet_node
from zsp.distributions.binomial import Binomial, binomial_node
from zsp.distributions.categorical import Categorical, OneHotCategorical, categorical_node, onehot_categorical_node
from zsp.distributions.cauchy import Cauchy, cauchy_node
from zsp.distributions.chi2 import Chi2, chi2_node
from zsp.distributions.concrete import (
    BinConcrete,
    Concrete,
    ExpConcrete,
    bin_concrete_node,
    concrete_node,
    exp_concrete_node,
)
from zsp.distributions.continuous_bernoulli import ContinuousBernoulli, continuous_bernoulli_node
from zsp.distributions.discretized_logistic_mixture import DiscretizedLogisticMixture, discretized_logistic_mixture_node
from zsp.distributions.exponential import Exponential, exponential_node
from zsp.distributions.flat import Flat, flat_node
from zsp.distributions.flow import Flow, flow_node
from zsp.distributions.gamma import Gamma, InverseGamma, gamma_node, inverse_gamma_node
from zsp.distributions.geometric import Geometric, geometric_node
from zsp.distributions.gumbel import Gumbel, gumbel_node
from zsp.distributions.half_cauchy import HalfCauchy, half_cauchy_node
from zsp.distributions.laplace import Laplace, laplace_node
from zsp.distributions.lkj_cholesky import LKJCholesky, lkj_cholesky_node
from zsp.distributions.logistic import Logistic, logistic_node
from zsp.distributions.low_rank_multivariate_normal import LowRankMultivariateNormal, low_rank_multivariate_normal_node
from zsp.distributions.mixture import Mixture, mixture_node
from zsp.distributions.multinomial import (
    Multinomial,
    UnnormalizedMultinomial,
    multinomial_node,
    unnormalized_multinomial_node,
)
from zsp.distributions.multivariate_normal import (
    MatrixVariateNormal,
    MultivariateNormal,
    matrix_variate_normal_cholesky_node,
    multivariate_normal_cholesky_node,
    multivariate_normal_node,
)
from zsp.distributions.multivariate_student_t import MultivariateStudentT, multivariate_student_t_node
from zsp.distributions.negative_binomial import NegativeBinomial, negative_binomial_node
from zsp.distributions.node_type import (
    DiscreteOptions,
    NodeOptions,
    NodeType,
    ReparameterizedOptions,
    node_method,
    node_type,
)
from zsp.distributions.normal import (
    FoldNormal,
    HalfNormal,
    LogNormal,
    Normal,
    fold_normal_node,
    half_normal_node,
    log_normal_node,
    normal_node,
)
from zsp.distributions.ordered_logistic import OrderedLogistic, ordered_logistic_node
from zsp.distributions.pareto import Pareto, pareto_node
from zsp.distributions.poisson import Poisson, poisson_node
from zsp.distributions.samples import Delta, Empirical, Implicit, delta_node, empirical_node, implicit_node
from zsp.distributions.student_t import StudentT, student_t_node
from zsp.distributions.sylvester import Sylvester
from zsp.distributions.truncated_normal import TruncatedNormal, truncated_normal_node
from zsp.distributions.uniform import Uniform, uniform_node
from zsp.distributions.von_mises import VonMises, von_mises_node
from zsp.distributions.weibull import Weibull, weibull_node
from zsp.distributions.wishart import Wishart, wishart_node
from zsp.distributions.zero_inflated import (
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
    zero_inflated_negative_binomial_node,
    zero_inflated_poisson_node,
)

__all__ = [
    "Bernoulli",
    "Beta",
    "BinConcrete",
    "Binomial",
    "Categorical",
    "Cauchy",
    "Chi2",
    "Concrete",
    "ContinuousBernoulli",
    "Delta",
    "Dirichlet",
    "DiscreteOptions",
    "DiscretizedLogisticMixture",
    "Empirical",
    "ExpConcrete",
    "Exponential",
    "Flat",
    "Flow",
    "FoldNormal",
    "Gamma",
    "Geometric",
    "Gumbel",
    "HalfCauchy",
    "HalfNormal",
    "Implicit",
    "InverseGamma",
    "LKJCholesky",
    "Laplace",
    "LogNormal",
    "Logistic",
    "LowRankMultivariateNormal",
    "MatrixVariateNormal",
    "Mixture",
    "Multinomial",
    "MultivariateNormal",
    "MultivariateStudentT",
    "NegativeBinomial",
    "NodeMethods",
    "NodeOptions",
    "NodeType",
    "Normal",
    "OneHotCategorical",
    "OrderedLogistic",
    "Pareto",
    "Poisson",
    "ReparameterizedOptions",
    "StudentT",
    "Sylvester",
    "TruncatedNormal",
    "Uniform",
    "UnnormalizedMultinomial",
    "VonMises",
    "Weibull",
    "Wishart",
    "ZeroInflatedNegativeBinomial",
    "ZeroInflatedPoisson",
    "node_method",
    "node_type",
]


class NodeMethods:
    """The table: one line a node method; two names on a line are aliases."""

    normal = node_method(normal_node)
    fold_normal = node_method(fold_normal_node)
    half_normal = node_method(half_normal_node)
    log_normal = node_method(log_normal_node)
    truncated_normal = node_method(truncated_normal_node)
    uniform = node_method(uniform_node)
    laplace = node_method(laplace_node)
    logistic = node_method(logistic_node)
    gumbel = node_method(gumbel_node)
    student_t = node_method(student_t_node)
    cauchy = node_method(cauchy_node)
    half_cauchy = node_method(half_cauchy_node)
    pareto = node_method(pareto_node)
    exponential = node_method(exponential_node)
    weibull = node_method(weibull_node)
    gamma = node_method(gamma_node)
    chi2 = node_method(chi2_node)
    inverse_gamma = node_method(inverse_gamma_node)
    beta = node_method(beta_node)
    dirichlet = node_method(dirichlet_node)
    continuous_bernoulli = node_method(continuous_bernoulli_node)
    von_mises = node_method(von_mises_node)
    bernoulli = node_method(bernoulli_node)
    categorical = discrete = node_method(categorical_node)
    onehot_categorical = onehot_discrete = node_method(onehot_categorical_node)
    binomial = node_method(binomial_node)
    geometric = node_method(geometric_node)
    negative_binomial = node_method(negative_binomial_node)
    multinomial = node_method(multinomial_node)
    unnormalized_multinomial = bag_of_categoricals = node_method(unnormalized_multinomial_node)
    poisson = node_method(poisson_node)
    zero_inflated_poisson = node_method(zero_inflated_poisson_node)
    zero_inflated_negative_binomial = node_method(zero_inflated_negative_binomial_node)
    ordered_logistic = node_method(ordered_logistic_node)
    discretized_logistic_mixture = node_method(discretized_logistic_mixture_node)
    bin_concrete = bin_gumbel_softmax = node_method(bin_concrete_node)
    concrete = gumbel_softmax = node_method(concrete_node)
    exp_concrete = exp_gumbel_softmax = node_method(exp_concrete_node)
    multivariate_normal = node_method(multivariate_normal_node)
    multivariate_normal_cholesky = node_method(multivariate_normal_cholesky_node)
    low_rank_multivariate_normal = node_method(low_rank_multivariate_normal_node)
    multivariate_student_t = node_method(multivariate_student_t_node)
    matrix_variate_normal_cholesky = node_method(matrix_variate_normal_cholesky_node)
    wishart = node_method(wishart_node)
    lkj_cholesky = node_method(lkj_cholesky_node)
    mixture = node_method(mixture_node)
    flow = node_method(flow_node)
    empirical = node_method(empirical_node)
    implicit = node_method(implicit_node)
    delta = node_method(delta_node)
    flat = node_method(flat_node)
