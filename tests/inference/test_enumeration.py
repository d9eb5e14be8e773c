"""Models with discrete latents summed out equal sums in a Python loop, and stand where models stand."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import zsp
from tests.monte_carlo import assert_mean


def brute_force(model, values, supports):
    """log of the sum over all values, and the posterior probabilities of each value of each entry."""
    terms, rows = [], list(itertools.product(*supports.values()))
    for row in rows:
        latents = dict(zip(supports, row, strict=True))
        terms.append(model.observe(**latents, **values).log_joint())
    terms = torch.stack(terms)
    return terms.logsumexp(0), terms.softmax(0), rows


def labels(n_values, *shape):
    """All arrays of labels of this shape."""
    grid = torch.cartesian_prod(*[torch.arange(float(n_values))] * math.prod(shape)).reshape(-1, *shape)
    return list(grid)


@zsp.meta_bayesian_net(scope="mixture")
def mixture(n, group=1):
    """Global means; a label and a datum for each of n."""
    bn = zsp.BayesianNet()
    means = bn.normal("means", torch.zeros(3), std=3.0, group_ndims=1)
    k = bn.categorical("k", torch.tensor([0.1, 0.7, -0.4]).expand(n, 3), group_ndims=group)
    bn.normal("x", means[..., k.long()], std=0.8, group_ndims=group)
    return bn


MEANS = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)


@pytest.mark.parametrize("local", [(), "k"])
def test_a_mixture_with_global_means(local):
    x = torch.randn(4)
    values = {"means": MEANS, "x": x}
    model = mixture(4)
    exact, weights, rows = brute_force(model, values, {"k": labels(3, 4)})
    net = zsp.enumerate_latents(model, "k", local=local)
    np.testing.assert_allclose(net(values), exact, rtol=1e-13)
    one_hot = torch.nn.functional.one_hot(torch.stack([row[0] for row in rows]).long(), 3).double()
    posterior = net.posterior(values)
    assert list(posterior) == ["k"]
    np.testing.assert_allclose(posterior["k"], torch.einsum("r,rnk->nk", weights, one_hot), rtol=1e-12)
    closed = (torch.tensor([0.1, 0.7, -0.4]).log_softmax(0) + torch.distributions.Normal(MEANS, 0.8).log_prob(x[:, None]))
    np.testing.assert_allclose(posterior["k"], closed.softmax(-1), rtol=1e-12)


def test_data_along_a_batch_axis_share_the_rows():
    """A thousand data with a 3-way label each take 3 rows."""

    @zsp.meta_bayesian_net()
    def model(n):
        bn = zsp.BayesianNet()
        k = bn.categorical("k", torch.zeros(n, 3))
        bn.normal("x", MEANS[k.long()], std=0.8)
        return bn

    x = torch.randn(1000)
    net = zsp.enumerate_latents(model(1000), "k", max_rows=3)
    expected = (torch.distributions.Normal(MEANS, 0.8).log_prob(x[:, None]) - math.log(3)).logsumexp(-1)
    np.testing.assert_allclose(net({"x": x}), expected, rtol=1e-13)
    assert net.posterior({"x": x})["k"].shape == (1000, 3)


@zsp.meta_bayesian_net(scope="hmm")
def hmm(n, length):
    """n sequences of a two-state chain with different transitions from each state."""
    bn = zsp.BayesianNet()
    logits = torch.tensor([[0.8, -0.8], [-0.3, 0.3]])
    state = torch.zeros(n)
    for t in range(length):
        state = bn.categorical(f"k{t}", logits[state.long()])
        bn.normal(f"x{t}", 2 * state, std=0.5 + 0.5 * state)
    return bn


def test_a_hidden_markov_model_equals_the_forward_algorithm():
    n, length = 3, 5
    x = {f"x{t}": torch.randn(n) for t in range(length)}
    transition = torch.tensor([[0.8, -0.8], [-0.3, 0.3]]).log_softmax(-1)
    log_alpha = None
    for t in range(length):
        emission = torch.distributions.Normal(torch.tensor([0.0, 2.0]), torch.tensor([0.5, 1.0])).log_prob(x[f"x{t}"][:, None])
        before = transition[0] if log_alpha is None else (log_alpha[..., None] + transition).logsumexp(-2)
        log_alpha = before + emission
    net = zsp.enumerate_latents(hmm(n, length), [f"k{t}" for t in range(length)])
    np.testing.assert_allclose(net(x), log_alpha.logsumexp(-1), rtol=1e-13)
    np.testing.assert_allclose(net.posterior(x)[f"k{length - 1}"], log_alpha.softmax(-1), rtol=1e-12)


@pytest.mark.parametrize("kind", ["bernoulli", "one-hot"])
def test_several_nodes_that_are_parents_of_one_another(kind):
    """A vector under group_ndims has a digit for each entry; x couples them."""

    @zsp.meta_bayesian_net()
    def model(n):
        bn = zsp.BayesianNet()
        z = bn.normal("z", torch.zeros(n), std=1.0)
        if kind == "bernoulli":
            a = bn.bernoulli("a", torch.stack([z, -z, 0.5 * z], -1), group_ndims=1)
            total = a.sum(-1)
        else:
            a = bn.onehot_categorical("a", torch.stack([z, -z, 0.5 * z], -1))
            total = a @ torch.tensor([-1.0, 0.5, 2.0])
        b = bn.bernoulli("b", total - 1)
        bn.normal("x", total * (1 + b), std=1.0)
        return bn

    values = {"z": torch.randn(4), "x": torch.randn(4)}
    n_rows = 16 if kind == "bernoulli" else 6
    support = labels(2, 3) if kind == "bernoulli" else list(torch.eye(3))
    supports = {"a": [a.expand(4, 3) for a in support], "b": [torch.full((4,), b) for b in (0.0, 1.0)]}
    exact, weights, rows = brute_force(model(4), values, supports)
    net = zsp.enumerate_latents(model(4), ["b", "a"], max_rows=n_rows)
    np.testing.assert_allclose(net(values), exact, rtol=1e-13)
    posterior = net.posterior(values)
    b = torch.stack([row[1] for row in rows])
    np.testing.assert_allclose(posterior["b"][:, 1], (weights * b).sum(0), rtol=1e-12)
    a = torch.stack([row[0] for row in rows])
    of_ones = posterior["a"][..., 1] if kind == "bernoulli" else posterior["a"]
    np.testing.assert_allclose(of_ones, (weights[..., None] * a).sum(0), rtol=1e-12)
    np.testing.assert_allclose(posterior["a"].sum(-1), torch.ones_like(posterior["a"][..., 0]))


@zsp.meta_bayesian_net(scope="nested")
def nested(n):
    """One global regime; for each datum a label, and for each of its three parts another."""
    bn = zsp.BayesianNet()
    c = bn.bernoulli("c", torch.tensor(0.3))
    k = bn.bernoulli("k", (0.5 - c).expand(n), group_ndims=1)
    m = bn.categorical("m", torch.stack([k, -k], -1)[:, None].expand(n, 3, 2), group_ndims=2)
    bn.normal("x", k[:, None] + m - c, std=0.7, group_ndims=2)
    return bn


def test_local_nodes_inside_local_ones_below_a_global_one():
    x = torch.randn(2, 3)
    net = zsp.enumerate_latents(nested(2), ["m", "c", "k"], local=["k", "m"], max_rows=8)
    supports = {"c": [torch.tensor(0.0), torch.tensor(1.0)], "k": labels(2, 2), "m": labels(2, 2, 3)}
    exact, weights, rows = brute_force(nested(2), {"x": x}, supports)
    np.testing.assert_allclose(net({"x": x}), exact, rtol=1e-13)
    posterior = net.posterior({"x": x})
    for i, name in enumerate(supports):
        ones = torch.stack([row[i] for row in rows])
        np.testing.assert_allclose(posterior[name][..., 1], torch.einsum("r,r...->...", weights, ones), rtol=1e-11)


def test_local_holds_or_is_refused():
    @zsp.meta_bayesian_net()
    def coupled(n, by):
        bn = zsp.BayesianNet()
        k = bn.bernoulli("k", torch.zeros(n), group_ndims=1)
        total = k.cumsum(-1) if by == "neighbours" else k.sum(-1)
        bn.normal("x", total, std=1.0, group_ndims=total.dim())
        return bn

    for by, x in (("neighbours", torch.randn(3)), ("sum", torch.randn(()))):
        net = zsp.enumerate_latents(coupled(3, by), "k")
        exact, _, _ = brute_force(coupled(3, by), {"x": x}, {"k": labels(2, 3)})
        np.testing.assert_allclose(net({"x": x}), exact, rtol=1e-13)
        before = torch.get_rng_state()
        with pytest.raises(ValueError, match=r"local=\['k'\] says that each entry is independent.*node 'x' depends on entries at other places"):
            zsp.enumerate_latents(coupled(3, by), "k", local="k")({"x": x})
        assert torch.equal(before, torch.get_rng_state())


def test_elements_of_the_batch_that_depend_on_one_another_are_refused():
    @zsp.meta_bayesian_net()
    def chain(n, group):
        bn = zsp.BayesianNet()
        k = bn.bernoulli("k", torch.zeros(n, 2), group_ndims=group)
        bn.normal("x", k.cumsum(0).sum(-1), std=1.0, group_ndims=group - 1)
        return bn

    x = torch.randn(3)
    with pytest.raises(ValueError, match=r"node 'x' depends at one place of the batch \[3\] on enumerated values at others.*group it"):
        zsp.enumerate_latents(chain(3, 1), "k")({"x": x})
    exact, _, _ = brute_force(chain(3, 2), {"x": x}, {"k": labels(2, 3, 2)})
    np.testing.assert_allclose(zsp.enumerate_latents(chain(3, 2), "k")({"x": x}), exact, rtol=1e-13)


def test_chains_sample_what_is_left():
    """The posterior of z ~ N(0, 1) with x ~ N(z + 2 k, 1), against a grid."""

    @zsp.meta_bayesian_net()
    def model():
        bn = zsp.BayesianNet()
        z = bn.normal("z", 0.0, std=1.0)
        k = bn.bernoulli("k", z)
        bn.normal("x", z + 2 * k, std=1.0)
        return bn

    net, x = zsp.enumerate_latents(model(), "k"), torch.tensor(1.3)
    kernel = zsp.HMC(step_size=0.6, n_leapfrogs=2, adapt_step_size=False, adapt_mass=False)  # a quarter of a period
    draws = zsp.mcmc(net, {"x": x}, kernel=kernel, n_samples=200, n_warmup=30, n_chains=30, progress=False, compile=False)
    grid = torch.linspace(-6, 6, 2001)
    weights = torch.func.vmap(lambda z: net({"z": z, "x": x}))(grid).softmax(0)
    z = draws["z"]
    means = z.mean(1)  # of the chains, which are independent
    mean = (weights * grid).sum()
    assert_mean(means, mean, false_alarm=1e-7)
    assert_mean(((z - mean) ** 2).mean(1), (weights * (grid - mean) ** 2).sum(), false_alarm=1e-7)
    assert means.std() / 30**0.5 < 0.05


def test_total_size_scales_the_marginal_and_not_the_terms_in_it():
    @zsp.meta_bayesian_net()
    def model(n, total_size):
        bn = zsp.BayesianNet()
        means = bn.normal("means", torch.zeros(3), std=3.0, group_ndims=1)
        k = bn.categorical("k", torch.zeros(n, 3), group_ndims=1, total_size=total_size)
        bn.normal("x", means[k.long()], std=0.8, group_ndims=1, total_size=20)
        return bn

    x = torch.randn(5)
    values = {"means": MEANS, "x": x}
    prior = torch.distributions.Normal(0.0, 3.0).log_prob(MEANS).sum()
    each = (torch.distributions.Normal(MEANS, 0.8).log_prob(x[:, None]) - math.log(3)).logsumexp(-1)
    net = zsp.enumerate_latents(model(5, 20), "k", local="k")
    np.testing.assert_allclose(net(values), prior + 4 * each.sum(), rtol=1e-13)
    expected = torch.distributions.Normal(MEANS, 0.8).log_prob(x[:, None]).softmax(-1)
    np.testing.assert_allclose(net.posterior(values)["k"], expected, rtol=1e-12)
    with pytest.raises(ValueError, match="is no log probability: they are scaled 'k' by 1, 'x' by 4"):
        zsp.enumerate_latents(model(5, None), "k", local="k")(values)


def test_missing_data_leave_the_prior():
    @zsp.meta_bayesian_net()
    def model(n, mask):
        bn = zsp.BayesianNet()
        k = bn.categorical("k", torch.tensor([0.2, 0.5]).expand(n, 2))
        bn.normal("x", k, std=1.0, mask=mask)
        return bn

    mask = torch.tensor([True, False])
    net = zsp.enumerate_latents(model(2, mask), "k")
    values = {"x": torch.tensor([0.3, float("nan")])}
    assert net(values)[1].abs() < 1e-15 and net(values)[0] < 0
    np.testing.assert_allclose(net.posterior(values)["k"][1], torch.tensor([0.2, 0.5]).softmax(-1))


def test_a_log_joint_of_the_models_own():
    model = mixture(3)
    model.log_joint = lambda bn: bn.log_joint() + bn["x"].tensor.sum()
    values = {"means": MEANS, "x": torch.randn(3)}
    exact, _, _ = brute_force(model, values, {"k": labels(3, 3)})
    np.testing.assert_allclose(zsp.enumerate_latents(model, "k")(values), exact, rtol=1e-13)
    posterior = zsp.enumerate_latents(model, "k").posterior(values)["k"]
    np.testing.assert_allclose(posterior, zsp.enumerate_latents(mixture(3), "k").posterior(values)["k"], rtol=1e-10)
    with pytest.raises(ValueError, match="has a log_joint of its own, which is not known to be a sum over nodes"):
        zsp.enumerate_latents(model, "k", local="k")(values)


# -- in the place of a model ------------------------------------------------------------------------------------------


def test_gradients_transforms_and_compiled_code():
    x, means = torch.randn(6), MEANS.clone()
    net = zsp.enumerate_latents(mixture(6), "k", local="k")

    def f(means):
        return net({"means": means, "x": x})

    def closed(means):
        log_p = torch.tensor([0.1, 0.7, -0.4]).log_softmax(0) + torch.distributions.Normal(means, 0.8).log_prob(x[:, None])
        return torch.distributions.Normal(0.0, 3.0).log_prob(means).sum() + log_p.logsumexp(-1).sum()

    gradient = torch.func.grad(closed)(means)
    np.testing.assert_allclose(torch.func.grad(f)(means), gradient, rtol=1e-11)  # also as the very first execution
    leaf = means.clone().requires_grad_()
    np.testing.assert_allclose(torch.autograd.grad(f(leaf), leaf)[0], gradient, rtol=1e-11)
    chains = torch.stack([means, means + 1, -means])
    expected = torch.stack([closed(m) for m in chains])
    np.testing.assert_allclose(torch.func.vmap(f)(chains), expected, rtol=1e-12)
    np.testing.assert_allclose(torch.func.vmap(torch.func.grad(f))(chains)[0], gradient, rtol=1e-11)
    np.testing.assert_allclose(torch.func.hessian(f)(means), torch.func.hessian(closed)(means), rtol=1e-9, atol=1e-12)
    traced = make_fx(lambda m: torch.autograd.grad(f(m), m)[0])(leaf)
    np.testing.assert_allclose(traced(leaf).detach(), gradient, rtol=1e-11)
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    np.testing.assert_allclose(compiled({"means": means, "x": x}), closed(means), rtol=1e-12)


def test_it_is_a_module_with_the_models_variables():
    @zsp.meta_bayesian_net(scope="net", reuse_variables=True)
    def model(n):
        bn = zsp.BayesianNet()
        k = bn.bernoulli("k", zsp.parameter("logit", 0.3).expand(n))
        bn.normal("x", k, std=1.0)
        return bn

    net = zsp.enumerate_latents(model(2), "k")
    net.materialize(x=torch.zeros(2))
    assert list(net.state_dict()) == ["meta_bn.net.logit"]
    net({"x": torch.ones(2)}).sum().backward()
    p = torch.sigmoid(torch.tensor(0.3))
    posterior = net.posterior({"x": torch.ones(2)})["k"][0, 1]
    (gradient,) = [parameter.grad for parameter in net.parameters()]
    np.testing.assert_allclose(gradient, 2 * (posterior - p), rtol=1e-6)


@pytest.mark.parametrize("n_samples", [None, 1, 7])
def test_the_elbo_of_what_is_left(n_samples):
    """z ~ N(0, 1), k ~ Bernoulli(z), x ~ N(z + 2 k, 1): sgvb on z with k summed out, sample by sample.

    y has no parents, so that its term lacks the sample axis.
    """

    @zsp.meta_bayesian_net()
    def model(n):
        bn = zsp.BayesianNet()
        z = bn.normal("z", torch.zeros(n), std=1.0)
        k = bn.bernoulli("k", z)
        bn.normal("x", z + 2 * k, std=1.0)
        bn.normal("y", torch.zeros(n), std=2.0)
        return bn

    q = zsp.BayesianNet()
    mean = torch.tensor([0.2, -0.4, 0.1], requires_grad=True)
    z = q.normal("z", mean, std=0.5, n_samples=n_samples)
    x, y = torch.randn(3), torch.randn(3)
    bound = zsp.elbo(zsp.enumerate_latents(model(3), "k"), {"x": x, "y": y}, variational=q)
    normal = torch.distributions.Normal
    terms = [normal(z + 2 * k, 1.0).log_prob(x) + torch.nn.functional.logsigmoid((2 * k - 1) * z) for k in (0, 1)]
    expected = torch.logsumexp(torch.stack(terms), 0) + normal(0.0, 1.0).log_prob(z) - normal(mean, 0.5).log_prob(z)
    expected = expected + normal(0.0, 2.0).log_prob(y)
    np.testing.assert_allclose(bound.tensor.detach(), expected.detach(), rtol=1e-12)
    ours, exact = (torch.autograd.grad(v.sum(), mean, retain_graph=True)[0] for v in (bound.sgvb(), -expected))
    np.testing.assert_allclose(ours, exact, rtol=1e-10)


def test_importance_sampling_of_what_is_left():
    @zsp.meta_bayesian_net()
    def model():
        bn = zsp.BayesianNet()
        z = bn.normal("z", 0.0, std=1.0)
        k = bn.bernoulli("k", torch.zeros_like(z))
        bn.normal("x", z + 2 * k, std=1.0)
        return bn

    def proposal():
        q = zsp.BayesianNet()
        q.normal("z", 0.3, std=1.0, n_samples=4000)
        return q

    estimate = zsp.is_loglikelihood(
        zsp.enumerate_latents(model(), "k"), {"x": torch.tensor(0.7)}, proposal=proposal, return_stats=True
    )
    mixture = torch.distributions.Normal(torch.tensor([0.0, 2.0]), 2**0.5).log_prob(torch.tensor(0.7)).exp().mean().log()
    assert abs(estimate.log_likelihood - mixture) < 5.4 * estimate.standard_error
    assert estimate.standard_error < 0.03


def test_latents_drawn_from_the_model_itself():
    @zsp.meta_bayesian_net()
    def model():
        bn = zsp.BayesianNet()
        u = bn.normal("u", 0.0, std=1.0)
        f = bn.normal("f", u, std=0.1)
        k = bn.bernoulli("k", torch.zeros_like(f))
        bn.normal("x", f + k, std=1.0)
        return bn

    q = zsp.BayesianNet()
    q.normal("u", 0.0, std=1.0, n_samples=5000)
    x = torch.tensor(0.4)
    bound = zsp.elbo(zsp.enumerate_latents(model(), "k"), {"x": x}, variational=q, from_prior=("f",))
    at = torch.randn(200_000) * 1.01**0.5
    terms = torch.stack([torch.distributions.Normal(at + k, 1.0).log_prob(x) for k in (0, 1)])
    expected = (terms.logsumexp(0) - math.log(2)).mean()
    assert_mean(bound.tensor.detach(), expected, bias=0.005)


def test_float32():
    torch.set_default_dtype(torch.float32)
    values = {"means": MEANS.float(), "x": torch.randn(4)}
    found = zsp.enumerate_latents(mixture(4), "k", local="k")(values)
    exact, _, _ = brute_force(mixture(4), values, {"k": labels(3, 4)})
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, exact, rtol=1e-5)


# -- what is refused --------------------------------------------------------------------------------------------------


def test_a_table_that_would_be_too_large_is_refused():
    values = {"means": MEANS, "x": torch.randn(50)}
    with pytest.raises(ValueError) as error:
        zsp.enumerate_latents(mixture(50), "k")(values)
    assert str(error.value) == (
        "a table of all joint values of 'k' would have about 10^23 rows ('k' has 3^50 values), more than "
        "max_rows=10,000. Enumerate fewer nodes; if the entries of a node are independent given all others (one label "
        "for each datum), name it in local=...; or draw them instead and train with zsp.elbo(...).reinforce() or "
        ".rebar()."
    )
    assert zsp.enumerate_latents(mixture(50), "k", local="k")(values).isfinite()
    x = {f"x{t}": torch.zeros(2) for t in range(4)}
    with pytest.raises(ValueError, match=r"would have 16 rows \('k0' has 2, 'k1' has 2, 'k2' has 2, 'k3' has 2 values\)"):
        zsp.enumerate_latents(hmm(2, 4), [f"k{t}" for t in range(4)], max_rows=15)(x)


def test_mistakes_in_names_are_refused():
    values = {"means": MEANS, "x": torch.zeros(4)}
    model = mixture(4)
    with pytest.raises(ValueError, match="has no such node; its stochastic nodes are 'means', 'k', 'x'.*Did you mean 'k'"):
        zsp.enumerate_latents(model, "kk")(values)
    with pytest.raises(ValueError, match="'k' is given a value and enumerated"):
        zsp.enumerate_latents(model, "k")({**values, "k": torch.zeros(4)})
    with pytest.raises(ValueError, match="has the latents 'means', which are neither given a value nor enumerated"):
        zsp.enumerate_latents(model, "k")({"x": torch.zeros(4)})
    with pytest.raises(ValueError, match=r"node 'means' \(Normal\) cannot be enumerated: its values are not one finite list"):
        zsp.enumerate_latents(model, "means")({"k": torch.zeros(4), "x": torch.zeros(4)})
    with pytest.raises(ValueError, match="local names 'x', but the enumerated nodes are 'k'"):
        zsp.enumerate_latents(model, "k", local="x")
    with pytest.raises(ValueError, match="the name of at least one node"):
        zsp.enumerate_latents(model, [])
    with pytest.raises(TypeError, match="needs a MetaBayesianNet, but got function. Call the decorated function first"):
        zsp.enumerate_latents(mixture, "k")


def test_local_nodes_whose_axes_do_not_nest_are_refused():
    @zsp.meta_bayesian_net()
    def model():
        bn = zsp.BayesianNet()
        bn.bernoulli("a", torch.zeros(3), group_ndims=1)
        bn.bernoulli("b", torch.zeros(4), group_ndims=1)
        return bn

    with pytest.raises(ValueError, match=r"must nest: 'a' has \[3\], 'b' has \[4\].*Leave one of them out of local"):
        zsp.enumerate_latents(model(), ["a", "b"], local=["a", "b"])({})
