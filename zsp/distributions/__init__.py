"""The distributions of zsp: classes for use anywhere, and the table of node methods.

A class follows ``torch.distributions`` (``log_prob``, ``sample``, ``rsample``, ...) with torch's argument names. A node
method has ZhuSuan's argument names. One line of :class:`NodeMethods` is one method of :class:`zsp.BayesianNet`, with a
signature that type checkers and editors read.
"""

from zsp.distributions.bernoulli import Bernoulli, bernoulli_node
from zsp.distributions.beta import Beta, Dirichlet, beta_node, dirichlet_node
from zsp.distributions.binomial import Binomial, binomial_node
from zsp.distributions.categorical import Categorical, OneHotCategorical, categorical_node, onehot_categorical_node
from zsp.distributions.concrete import (
    BinConcrete,
    Concrete,
    ExpConcrete,
    bin_concrete_node,
    concrete_node,
    exp_concrete_node,
)
from zsp.distributions.exponential import Exponential, exponential_node
from zsp.distributions.flat import Flat, flat_node
from zsp.distributions.gamma import Gamma, InverseGamma, gamma_node, inverse_gamma_node
from zsp.distributions.half_cauchy import HalfCauchy, half_cauchy_node
from zsp.distributions.laplace import Laplace, laplace_node
from zsp.distributions.logistic import Logistic, logistic_node
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
from zsp.distributions.poisson import Poisson, poisson_node
from zsp.distributions.samples import Delta, Empirical, Implicit, delta_node, empirical_node, implicit_node
from zsp.distributions.student_t import StudentT, student_t_node
from zsp.distributions.uniform import Uniform, uniform_node

__all__ = [
    "Bernoulli",
    "Beta",
    "BinConcrete",
    "Binomial",
    "Categorical",
    "Concrete",
    "Delta",
    "Dirichlet",
    "DiscreteOptions",
    "Empirical",
    "ExpConcrete",
    "Exponential",
    "Flat",
    "FoldNormal",
    "Gamma",
    "HalfCauchy",
    "HalfNormal",
    "Implicit",
    "InverseGamma",
    "Laplace",
    "LogNormal",
    "Logistic",
    "MatrixVariateNormal",
    "Multinomial",
    "MultivariateNormal",
    "NodeMethods",
    "NodeOptions",
    "NodeType",
    "Normal",
    "OneHotCategorical",
    "Poisson",
    "ReparameterizedOptions",
    "StudentT",
    "Uniform",
    "UnnormalizedMultinomial",
    "node_method",
    "node_type",
]


class NodeMethods:
    """The table: one line a node method; two names on a line are aliases."""

    normal = node_method(normal_node)
    fold_normal = node_method(fold_normal_node)
    half_normal = node_method(half_normal_node)
    log_normal = node_method(log_normal_node)
    uniform = node_method(uniform_node)
    laplace = node_method(laplace_node)
    logistic = node_method(logistic_node)
    student_t = node_method(student_t_node)
    half_cauchy = node_method(half_cauchy_node)
    exponential = node_method(exponential_node)
    gamma = node_method(gamma_node)
    inverse_gamma = node_method(inverse_gamma_node)
    beta = node_method(beta_node)
    dirichlet = node_method(dirichlet_node)
    bernoulli = node_method(bernoulli_node)
    categorical = discrete = node_method(categorical_node)
    onehot_categorical = onehot_discrete = node_method(onehot_categorical_node)
    binomial = node_method(binomial_node)
    multinomial = node_method(multinomial_node)
    unnormalized_multinomial = bag_of_categoricals = node_method(unnormalized_multinomial_node)
    poisson = node_method(poisson_node)
    bin_concrete = bin_gumbel_softmax = node_method(bin_concrete_node)
    concrete = gumbel_softmax = node_method(concrete_node)
    exp_concrete = exp_gumbel_softmax = node_method(exp_concrete_node)
    multivariate_normal = node_method(multivariate_normal_node)
    multivariate_normal_cholesky = node_method(multivariate_normal_cholesky_node)
    matrix_variate_normal_cholesky = node_method(matrix_variate_normal_cholesky_node)
    empirical = node_method(empirical_node)
    implicit = node_method(implicit_node)
    delta = node_method(delta_node)
    flat = node_method(flat_node)
