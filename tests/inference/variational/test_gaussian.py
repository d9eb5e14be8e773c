import copy
import math
import pickle

import pytest
import torch
from torch.distributions import constraints

import zsp
from tests.monte_carlo import assert_mean, assert_variance
from zsp.distributions.supports import ordered

MAKERS = {"mean_field": zsp.mean_field, "full_rank": zsp.full_rank}
both = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@zsp.meta_bayesian_net(scope="regression")
def regression(x):
    bn = zsp.BayesianNet()
    w = bn.normal("w", torch.zeros(x.shape[-1], dtype=x.dtype), std=2.0, group_ndims=1)
    b = bn.normal("b", torch.ones((), dtype=x.dtype), std=1.0)
    bn.normal("y", w @ x.T + b.unsqueeze(-1), std=0.5, group_ndims=1)
    return bn


X = torch.tensor([[1.0, 0.3], [-0.5, 2.0], [0.2, -1.0], [1.5, 1.5]], dtype=torch.float64)
Y = torch.tensor([0.3, -1.0, 2.0, 0.5], dtype=torch.float64)


def posterior():
    """Mean and precision of (w, b), and the log evidence of the regression."""
    design = torch.cat([X, torch.ones(4, 1)], -1)
    prior_mean, prior_precision = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.25, 0.25, 1.0]).diag()
    precision = prior_precision + design.T @ design / 0.25
    mean = torch.linalg.solve(precision, prior_precision @ prior_mean + design.T @ Y / 0.25)
    covariance = design @ torch.linalg.inv(prior_precision) @ design.T + 0.25 * torch.eye(4)
    evidence = torch.distributions.MultivariateNormal(design @ prior_mean, covariance).log_prob(Y)
    return mean, precision, evidence


@zsp.meta_bayesian_net(scope="supports")
def every_support():
    bn = zsp.BayesianNet()
    theta = bn.gamma("theta", 2.0, 1.0)
    u = bn.uniform("u", torch.zeros(2), theta.unsqueeze(-1), group_ndims=1)
    p = bn.dirichlet("p", torch.ones(3))
    factor = bn.lkj_cholesky("factor", 3, 2.0)
    w = bn.wishart("w", df=4.0, cov=torch.eye(2))
    cuts = bn.flat("cuts", (3,), ordered)
    mean = u.sum(-1) + (p[..., 0] * factor[..., 2, 1]) + w[..., 1, 0] + cuts[..., 1]
    bn.normal("y", mean, std=1.0)
    return bn


@zsp.meta_bayesian_net(scope="columns")
def columns():  # needs vmap: uniform's bounds are columns of one value of w
    bn = zsp.BayesianNet()
    w = bn.log_normal("w", torch.zeros(2), std=0.5, group_ndims=1)
    u = bn.uniform("u", torch.zeros(3), torch.ones(3, 2) @ w, group_ndims=1)
    bn.normal("y", (u * w[0]).sum(), std=1.0)
    return bn


DEPENDENT = {"broadcast": every_support, "vmap": columns}
dependent = pytest.mark.parametrize("build", DEPENDENT.values(), ids=DEPENDENT)
OBSERVED = {"y": torch.tensor(0.3, dtype=torch.float64)}


def perturbed(q, scale=0.3):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in q.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return q


def values_of(bn):
    return {name: bn[name].tensor for name in bn.nodes}


# -- the density under q --------------------------------------------------------------------------------------------------


@both
@dependent
def test_density_is_exact(make, build):
    q = perturbed(make(build(), OBSERVED, n_samples=4))
    bn = q.observe()
    log_density = zsp.LogDensity(build(), OBSERVED)
    family = q.family
    scale_tril = family.logstd.exp().diag() if make is zsp.mean_field else family.scale_tril
    normal = torch.distributions.MultivariateNormal(family.loc, scale_tril=scale_tril)
    for i in range(4):
        position = log_density.unconstrain({name: value[i] for name, value in values_of(bn).items()})
        # the log-Jacobian of the transform is the log density less the log joint
        values = log_density.constrain(position)
        jacobian = log_density(position) - build().observe(**OBSERVED, **values).log_joint()
        torch.testing.assert_close(bn.log_joint()[i], normal.log_prob(position) - jacobian, atol=1e-9, rtol=1e-9)


@both
@dependent
def test_nodes_are_on_their_supports_and_add_up(make, build):
    q = perturbed(make(build(), OBSERVED, n_samples=50))
    bn = q.observe()
    model = build().observe(**OBSERVED, **{name: value[0] for name, value in values_of(bn).items()})
    for name in bn.nodes:
        assert bool(model[name].dist.support.check(bn[name].tensor[0]).all())
    torch.testing.assert_close(sum(bn.cond_log_prob(list(bn.nodes))), bn.log_joint())
    assert bool((bn["u"].tensor > 0).all())
    limit = values_of(bn)["theta"].unsqueeze(-1) if build is every_support else bn["w"].tensor.sum(-1, keepdim=True)
    assert bool((bn["u"].tensor < limit).all())


@both
@dependent
def test_given_values_have_the_density_of_the_draws(make, build):
    q = perturbed(make(build(), OBSERVED, n_samples=3))
    for _ in range(2):  # checked, and plain
        bn = q.observe()
        drawn, noise = bn.log_joint(), bn._log_joint_of_draws()
        given = q.observe(**values_of(bn)).log_joint()
        torch.testing.assert_close(given, drawn, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(noise, drawn, atol=1e-9, rtol=1e-9)
        # and, with the draws as functions of the parameters, the same gradient
        parameters = list(q.parameters())
        expected = torch.autograd.grad(given.sum(), parameters, retain_graph=True, allow_unused=True)
        for log_q in (drawn, noise):
            found = torch.autograd.grad(log_q.sum(), parameters, retain_graph=True, allow_unused=True)
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(torch.zeros(()) if a is None else a, torch.zeros_like(a) if b is None else b)


@both
def test_a_factor_at_other_values(make):
    q = perturbed(make(every_support(), OBSERVED, n_samples=3))
    bn = q.observe()
    other = values_of(q.observe())
    for name in ("cuts", "factor"):  # at the end, where no later latent moves along
        values = {**values_of(bn), name: other[name]}
        if name == "cuts":
            expected = q.observe(**values).cond_log_prob(name)
            torch.testing.assert_close(bn[name].dist.log_prob(other[name]), expected, atol=1e-9, rtol=1e-9)
        alone = torch.stack([bn[name].dist.log_prob(other[name][0])[i] for i in range(3)])
        torch.testing.assert_close(alone[0], bn[name].dist.log_prob(other[name])[0])


def test_draws_follow_the_gaussian():
    q = perturbed(zsp.full_rank(regression(X), {"y": Y}, n_samples=20_000), scale=0.5)
    bn = q.observe()
    draws = torch.cat([bn["w"].tensor, bn["b"].tensor.unsqueeze(-1)], -1).detach()
    covariance = (q.family.scale_tril @ q.family.scale_tril.mT).detach()
    assert_mean(draws, q.family.loc.detach())
    assert_variance(draws, covariance.diagonal())
    centred = draws - q.family.loc.detach()
    assert_mean(centred[:, 0] * centred[:, 2], covariance[0, 2])


# -- exact posteriors -----------------------------------------------------------------------------------------------------


def at_the_posterior(q):
    mean, precision, _ = posterior()
    tril = torch.linalg.cholesky(torch.linalg.inv(precision))
    with torch.no_grad():
        q.family.loc.copy_(mean)
        q.family.logstd.copy_(tril.diagonal().log())
        q.family.lower.copy_(tril)
    return q


def test_full_rank_at_the_exact_posterior_has_no_variance():
    evidence = posterior()[2]
    model, observed = regression(X), {"y": Y}
    q = at_the_posterior(zsp.full_rank(model, observed, n_samples=10, use_path_derivative=True))
    bound = zsp.elbo(model, observed, variational=q)
    torch.testing.assert_close(bound.tensor, evidence.expand(10), atol=1e-11, rtol=0)
    stats = zsp.is_loglikelihood(model, observed, proposal=q, n_samples=25, chunk=4, return_stats=True)
    torch.testing.assert_close(stats.log_likelihood, evidence, atol=1e-11, rtol=0)
    assert float(stats.standard_error) < 1e-8
    for cost in bound.sgvb():  # so is the gradient of every draw, without the score
        for gradient in torch.autograd.grad(cost, list(q.parameters()), retain_graph=True):
            torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-10, rtol=0)


def test_full_rank_learns_the_exact_posterior():
    mean, precision, _ = posterior()
    exact = torch.distributions.MultivariateNormal(mean, precision_matrix=precision)
    model, observed = regression(X), {"y": Y}
    q = zsp.full_rank(model, observed, n_samples=4, use_path_derivative=True)

    def divergence():
        own = torch.distributions.MultivariateNormal(q.family.loc, scale_tril=q.family.scale_tril)
        return torch.distributions.kl_divergence(own, exact).item()

    optimizer = torch.optim.Adam(q.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)
    before = divergence()
    for _ in range(200):
        optimizer.zero_grad()
        zsp.elbo(model, observed, variational=q, axis=0).sgvb().backward()
        optimizer.step()
        schedule.step()
    assert before > 5.0 and divergence() < 1e-3


def test_mean_field_has_its_known_optimum():
    # KL(q || N(m, P^-1)) over diagonal covariances is least at the mean m and the variances 1 / P_ii
    mean, precision, evidence = posterior()
    q = zsp.mean_field(regression(X), {"y": Y}, n_samples=1)
    gap = 0.5 * (precision.diagonal().log().sum() - torch.linalg.slogdet(precision).logabsdet)
    with torch.no_grad():
        q.family.loc.copy_(mean)
        q.family.logstd.copy_(-0.5 * precision.diagonal().log())
    # a cubature of degree 3 is exact for the quadratic bound: draws at plus and minus sqrt(3) along each axis
    noise = math.sqrt(3) * torch.cat([torch.eye(3), -torch.eye(3)])

    def exact_bound():
        position = q.family.draw(noise)
        values = {"w": position[:, :2], "b": position[:, 2]}
        log_p = torch.stack(
            [regression(X)({"y": Y, "w": w, "b": b}) for w, b in zip(values["w"], values["b"], strict=True)]
        )
        return (log_p - q.observe(**values).log_joint()).mean()

    bound = exact_bound()
    torch.testing.assert_close(bound, evidence - gap, atol=1e-11, rtol=0)
    for gradient in torch.autograd.grad(bound, list(q.parameters())):
        torch.testing.assert_close(gradient, torch.zeros(3), atol=1e-11, rtol=0)


@both
@pytest.mark.parametrize("use_path_derivative", [False, True])
def test_sgvb_is_the_gradient_of_the_bound_draw_by_draw(make, use_path_derivative):
    model = every_support()
    q = perturbed(make(model, OBSERVED, n_samples=5, use_path_derivative=use_path_derivative))
    log_density, family = q.family.log_density, q.family
    for seed in range(2):  # checked, and plain
        torch.manual_seed(seed)
        cost = zsp.elbo(model, OBSERVED, variational=q).sgvb()
        torch.manual_seed(seed)
        x = family.draw(torch.randn(5, log_density.n_dims))
        scale_tril = family.logstd.exp().diag() if make is zsp.mean_field else family.scale_tril
        loc, scale_tril = (p.detach() if use_path_derivative else p for p in (family.loc, scale_tril))
        log_q = torch.distributions.MultivariateNormal(loc, scale_tril=scale_tril).log_prob(x)
        expected = log_q - log_density(x)  # all in the unconstrained space
        torch.testing.assert_close(cost, expected, atol=1e-9, rtol=1e-9)
        for k in range(5):
            for parameter in q.parameters():
                (found,) = torch.autograd.grad(cost[k], parameter, retain_graph=True)
                (wanted,) = torch.autograd.grad(expected[k], parameter, retain_graph=True)
                torch.testing.assert_close(found, wanted, atol=1e-8, rtol=1e-8)


# -- training -------------------------------------------------------------------------------------------------------------


@zsp.meta_bayesian_net(scope="constrained")
def constrained(like):
    bn = zsp.BayesianNet()
    rate = bn.gamma("rate", 2.0 * like, 1.0)
    p = bn.dirichlet("p", like.expand(3))
    factor = bn.lkj_cholesky("factor", 2, like)
    bn.poisson("n", rate.unsqueeze(-1).expand(*rate.shape, 3), group_ndims=1)
    bn.unnormalized_multinomial("k", p.log())
    bn.multivariate_normal_cholesky("z", torch.zeros(3, 2).to(like), factor.unsqueeze(-3), group_ndims=1)
    return bn


def constrained_evidence(n, k, z):
    """Gamma-Poisson and Dirichlet-categorical in closed form; the correlation, uniform on (-1, 1), by quadrature."""
    rate = torch.lgamma(2 + n.sum()) - (2 + n.sum()) * math.log(1 + 3) - torch.lgamma(n + 1).sum()
    p = math.log(2) + torch.lgamma(1 + k).sum() - torch.lgamma(3 + k.sum())
    r = torch.linspace(-1, 1, 20_001)[1:-1]
    covariance = torch.stack([torch.stack([torch.ones_like(r), r], -1), torch.stack([r, torch.ones_like(r)], -1)], -2)
    normal = torch.distributions.MultivariateNormal(torch.zeros(2), covariance.unsqueeze(1))
    correlation = torch.trapezoid(normal.log_prob(z).sum(-1).exp() / 2, r).log()
    return (rate + p + correlation).item()


@pytest.mark.parametrize("make, dtype", [(zsp.mean_field, torch.float32), (zsp.full_rank, torch.float64)])
def test_constrained_latents_train(make, dtype):
    observed = {
        "n": torch.tensor([3.0, 5.0, 4.0]),
        "k": torch.tensor([5.0, 1.0, 2.0]),
        "z": torch.tensor([[1.0, 0.8], [-0.5, -0.7], [0.3, 0.1]]),
    }
    evidence = constrained_evidence(**observed)
    observed = {name: value.to(dtype) for name, value in observed.items()}
    model = constrained(torch.ones((), dtype=dtype))
    q = make(model, observed, n_samples=8)

    def gap():
        with torch.no_grad():
            return evidence - zsp.elbo(model, observed, variational=q.bind(n_samples=5000), axis=0).tensor.item()

    before = gap()
    optimizer = torch.optim.Adam(q.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)
    for _ in range(120):
        optimizer.zero_grad()
        zsp.elbo(model, observed, variational=q, axis=0).sgvb().backward()
        optimizer.step()
        schedule.step()
    assert before > 3.0 and gap() < 0.4
    stats = zsp.is_loglikelihood(model, observed, proposal=q, n_samples=20_000, chunk=5000, return_stats=True)
    assert abs(stats.log_likelihood.item() - evidence) < 5.4 * stats.standard_error.item() < 0.2
    with torch.no_grad():
        values = values_of(q.bind(n_samples=5000).observe())
    # the exact marginals are Gamma(14, 4) and Dirichlet(6, 2, 3); a Gaussian of their logarithms has nearly their means
    assert values["rate"].dtype == dtype and abs(values["rate"].mean().item() - 14 / 4) < 0.15
    assert float((values["p"].mean(0) - torch.tensor([6.0, 2.0, 3.0]) / 11).abs().max()) < 0.03


def test_local_latents_keep_the_batch():
    @zsp.meta_bayesian_net(scope="local")
    def model(n):
        bn = zsp.BayesianNet()
        z = bn.normal("z", torch.zeros(n, 2), std=1.0, group_ndims=1)
        s = bn.dirichlet("s", torch.ones(n, 3))
        bn.normal("x", z.sum(-1) + s[..., 0], std=torch.tensor(0.5))
        return bn

    x = torch.linspace(-1, 1, 4)
    q = zsp.mean_field(model(4), {"x": x}, n_samples=6)
    bound = zsp.elbo(model(4), {"x": x}, variational=q, axis=0)
    assert bound.tensor.shape == (4,) and q.observe().log_joint().shape == (6, 4)
    bound.sgvb().sum().backward()
    assert bool(q.family.loc.grad.isfinite().all())
    with pytest.raises(ValueError, match=r"has the batch shape \[4\], but a full covariance over all latents"):
        zsp.full_rank(model(4), {"x": x})


def test_several_sample_axes_and_none():
    q = zsp.mean_field(regression(X), {"y": Y})
    assert q.observe()["w"].shape == (2,) and q.observe().log_joint().shape == ()
    assert zsp.elbo(regression(X), {"y": Y}, variational=q).tensor.shape == ()
    assert q.bind(n_samples=1).observe()["w"].shape == (1, 2)


def test_the_models_parameters_train_along():
    class Bound(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.log_limit = torch.nn.Parameter(torch.tensor(0.0))

    @zsp.meta_bayesian_net(scope="limited")
    def model(bound):
        bn = zsp.BayesianNet()
        u = bn.uniform("u", 0.0, bound.log_limit.exp())
        bn.normal("y", u, std=0.1)
        return bn

    net = model(Bound())
    q = zsp.mean_field(net, {"y": torch.tensor(2.0)}, n_samples=5)
    assert {name for name, _ in q.named_parameters()} == {"family.loc", "family.logstd"}
    with torch.no_grad():
        net.bound.log_limit.fill_(3.0)
        q.family.loc.fill_(5.0)
    assert q.observe()["u"].tensor.detach().min() > 10.0  # the support is that of the model now


@both
def test_modules(make):
    q = perturbed(make(regression(X), {"y": Y}, n_samples=3))
    torch.manual_seed(1)
    expected = q.observe()["w"].tensor
    for other in (copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
        torch.manual_seed(1)
        assert torch.equal(other.observe()["w"].tensor, expected)
    fresh = make(regression(X), {"y": Y}, n_samples=3)
    fresh.load_state_dict(q.state_dict())
    torch.manual_seed(1)
    assert torch.equal(fresh.observe()["w"].tensor, expected)


@both
def test_compiled(make):
    q = perturbed(make(regression(X), {"y": Y}, n_samples=3))
    values = values_of(q.observe())
    q.observe(**values)
    compiled = torch.compile(lambda v: q(v), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(values), q(values))


def test_a_callable():
    def log_joint(values):
        s = values["s"]
        return torch.distributions.Gamma(2.0, 1.0).log_prob(s) + torch.distributions.Poisson(s).log_prob(values["n"])

    q = zsp.mean_field(
        log_joint,
        {"n": torch.tensor(3.0)},
        latents={"s": torch.tensor(1.0)},
        supports={"s": constraints.positive},
        n_samples=20_000,
    )
    found = zsp.is_loglikelihood(log_joint, {"n": torch.tensor(3.0)}, proposal=q, return_stats=True)
    # negative binomial: C(4, 3) (1/2)^2 (1/2)^3
    assert abs(found.log_likelihood.item() - math.log(4 / 32)) < 6 * found.standard_error.item() + 1e-3


def test_where_it_begins():
    model, observed = regression(X), {"y": Y}
    init = {"w": torch.tensor([1.0, 2.0]), "b": torch.tensor(-1.0)}
    q = zsp.mean_field(model, observed, init=init, std=0.5)
    torch.testing.assert_close(q.family.loc.detach(), torch.tensor([1.0, 2.0, -1.0]))
    torch.testing.assert_close(q.family.logstd.detach(), torch.full((3,), math.log(0.5)))
    torch.testing.assert_close(zsp.mean_field(model, observed).family.loc.detach(), torch.zeros(3))
    with pytest.raises(ValueError, match=r"one value for each latent, but these have the leading axes \[2\]"):
        zsp.mean_field(model, observed, init={"w": torch.zeros(2, 2), "b": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"std, the standard deviation to begin with, must be positive, but got -1"):
        zsp.full_rank(model, observed, std=-1)

    def log_joint(values):
        return values["w"].log()

    with pytest.raises(ValueError, match=r"is -inf in the middle of the unconstrained space. Begin elsewhere"):
        zsp.mean_field(log_joint, {}, latents={"w": torch.tensor(1.0)})
    with pytest.raises(ValueError, match="is nan at the values that init gives"):
        zsp.mean_field(log_joint, {}, latents={"w": torch.tensor(1.0)}, init={"w": torch.tensor(-1.0)})


def test_given_latents_that_do_not_fit():
    q = zsp.mean_field(regression(X), {"y": Y}, n_samples=3)
    with pytest.raises(ValueError, match="values are needed for all latents, but 'b' has none"):
        q.observe(w=torch.zeros(3, 2))
    with pytest.raises(ValueError, match="observations were given for 'c'"):
        q.observe(c=torch.zeros(3, 2))


@both
def test_latents_that_have_no_unconstrained_space(make):
    @zsp.meta_bayesian_net(scope="discrete")
    def model():
        bn = zsp.BayesianNet()
        bn.bernoulli("k", torch.tensor(0.0))
        return bn

    with pytest.raises(ValueError, match=r"'k' \(bernoulli\) is discrete.*zsp.enumerate_latents\(model, 'k'\)"):
        make(model(), {})
