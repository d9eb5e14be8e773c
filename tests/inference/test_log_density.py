import functools
import math

import pytest
import torch
from torch.distributions import constraints
from torch.fx.experimental.proxy_tensor import make_fx

import zsp
from tests.distributions.table import CASES
from zsp.distributions.supports import ordered
from zsp.inference.chains import Way
from zsp.inference.log_density import LogDensity


def gradient(log_density, position):
    position = position.detach().requires_grad_()
    return torch.autograd.grad(log_density(position).sum(), position)[0]


def gradient_of(log_density, position):
    return torch.autograd.grad(log_density(position).sum(), position)


def looped(log_density, positions):
    return torch.stack([log_density(position) for position in positions])


# -- models ---------------------------------------------------------------------------------------------------------------


@zsp.meta_bayesian_net(scope="regression")
def regression(x):
    bn = zsp.BayesianNet()
    w = bn.normal("w", torch.zeros(x.shape[-1]), std=2.0, group_ndims=1)
    std = bn.gamma("std", 2.0, 1.0)
    bn.deterministic("largest", w.max())  # over all chains, if the model saw them
    bn.normal("y", w @ x.T, std=std.unsqueeze(-1), group_ndims=1)
    return bn


@zsp.meta_bayesian_net(scope="columns")
def columns(x):  # x @ w is right for one value of w only
    bn = zsp.BayesianNet()
    w = bn.normal("w", torch.zeros(x.shape[-1]), std=2.0, group_ndims=1)
    std = bn.gamma("std", 2.0, 1.0)
    bn.normal("y", x @ w, std=std, group_ndims=1)
    return bn


@zsp.meta_bayesian_net(scope="slope")
def slope(x):  # with as many chains as data, w * x is no error, but wrong
    bn = zsp.BayesianNet()
    w = bn.normal("w", 0.0, std=2.0)
    bn.normal("y", w * x, std=1.0, group_ndims=1)
    return bn


@zsp.meta_bayesian_net(scope="supports")
def every_support():
    bn = zsp.BayesianNet()
    theta = bn.gamma("theta", 2.0, 1.0)
    u = bn.uniform("u", 0.0, theta)
    v = bn.truncated_normal("v", 0.0, std=1.0, minval=-u, maxval=theta)
    p = bn.dirichlet("p", torch.ones(3))
    factor = bn.lkj_cholesky("factor", 3, 2.0)
    w = bn.wishart("w", df=4.0, cov=torch.eye(2))
    cuts = bn.flat("cuts", (3,), ordered)
    tril = bn.flat("tril", (2, 2), constraints.lower_cholesky)
    mean = u + v + (p[..., 0] * factor[..., 2, 1]) + w[..., 1, 0] + cuts[..., 1]
    bn.normal("y", mean, std=1.0 + tril[..., 0, 0].square() + tril.square().sum((-2, -1)))
    return bn


X, Y = torch.linspace(-1.0, 1.0, 15, dtype=torch.float64).reshape(5, 3), torch.arange(5.0, dtype=torch.float64)


# -- the density ----------------------------------------------------------------------------------------------------------

CONTINUOUS = [case for case in CASES if not case.discrete and case.name not in ("empirical", "delta", "flat")]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", CONTINUOUS, ids=lambda case: case.name)
def test_every_continuous_node(case, dtype):
    parameters = case.cast(case.parameters, dtype)

    @zsp.meta_bayesian_net(scope="table")
    def model():
        bn = zsp.BayesianNet()
        getattr(bn, case.name)("z", **parameters)
        return bn

    log_density = LogDensity(model(), {})
    position = 0.7 * torch.randn(4, log_density.n_dims, dtype=log_density.dtype)
    assert log_density.dtype == dtype and log_density(position).shape == (4,)
    assert bool(gradient(log_density, position).isfinite().all())
    if dtype == torch.float64:
        transform = torch.distributions.biject_to(case.build().support)
        if case.name not in ("dirichlet", "concrete", "exp_concrete"):  # whose coordinates differ from torch's
            value = log_density.constrain(position)["z"]
            x = transform.inv(value)
            jacobian = transform.log_abs_det_jacobian(x, value)
            expected = (case.build().log_prob(value) + jacobian.reshape(4, 3, -1).sum(-1)).sum(-1)
            torch.testing.assert_close(log_density(position), expected)


SCALARS = {
    "gamma": lambda bn: bn.gamma("z", 2.0, 1.5),
    "beta": lambda bn: bn.beta("z", 0.7, 2.5),
    "uniform": lambda bn: bn.uniform("z", -1.0, 3.0),
    "truncated_normal": lambda bn: bn.truncated_normal("z", 0.5, std=1.0, maxval=1.0),
    "pareto": lambda bn: bn.pareto("z", 2.0, 1.5),
    "von_mises": lambda bn: bn.von_mises("z", 1.0, 2.0),
    "half_cauchy": lambda bn: bn.half_cauchy("z", 1.0),
    "dirichlet": lambda bn: bn.dirichlet("z", torch.tensor([0.8, 2.0])),
    "lkj_cholesky": lambda bn: bn.lkj_cholesky("z", 2, 1.3),
}


@pytest.mark.parametrize("declare", SCALARS.values(), ids=SCALARS)
def test_density_integrates_to_one(declare):
    @zsp.meta_bayesian_net(scope="scalar")
    def model():
        bn = zsp.BayesianNet()
        declare(bn)
        return bn

    grid = torch.linspace(-45.0, 45.0, 4501)
    density = LogDensity(model(), {})(grid.unsqueeze(-1)).exp()
    torch.testing.assert_close(torch.trapezoid(density, grid), torch.tensor(1.0), atol=1e-8, rtol=0)


@zsp.meta_bayesian_net(scope="nested")
def nested():
    bn = zsp.BayesianNet()
    theta = bn.gamma("theta", 2.0, 1.0)
    bn.uniform("u", 0.0, theta)
    return bn


def test_a_support_that_depends_on_another_latent():
    # theta ~ Gamma(2, 1), u | theta ~ Uniform(0, theta) has the marginal u ~ Exponential(1)
    log_density = LogDensity(nested(), {})
    grid = torch.linspace(-22.0, 22.0, 441)
    positions = torch.cartesian_prod(grid, grid)
    mass = log_density(positions).exp() * (grid[1] - grid[0]) ** 2
    u = log_density.constrain(positions)["u"]
    torch.testing.assert_close(mass.sum(), torch.tensor(1.0), atol=1e-6, rtol=0)
    for power in (1, 2, 3):
        torch.testing.assert_close(
            (mass * u**power).sum(), torch.tensor(math.factorial(power) * 1.0), atol=1e-5, rtol=0
        )
    torch.testing.assert_close((mass * (-u).exp()).sum(), torch.tensor(0.5), atol=1e-6, rtol=0)


def test_the_log_joint_and_the_jacobians_are_added():
    log_density = LogDensity(every_support(), {"y": torch.tensor(0.3)})
    position = log_density.initial(())
    values = log_density.constrain(position)
    log_joint = every_support().observe(y=torch.tensor(0.3), **values).log_joint()
    free = {
        "p": lambda v: v[:-1],
        "factor": lambda v: v[torch.tril_indices(3, 3, -1).unbind()],
        "w": lambda v: v[torch.tril_indices(2, 2).unbind()],
        "tril": lambda v: v[torch.tril_indices(2, 2).unbind()],
    }

    def coordinates(q):
        values = log_density.constrain(q)
        return torch.cat([free.get(name, lambda v: v)(value).reshape(-1) for name, value in values.items()])

    jacobian = torch.autograd.functional.jacobian(coordinates, position)
    assert jacobian.shape == (log_density.n_dims, log_density.n_dims)
    torch.testing.assert_close(log_density(position), log_joint + torch.linalg.slogdet(jacobian).logabsdet)


def test_local_latents_are_summed_over_the_batch():
    @zsp.meta_bayesian_net(scope="local")
    def model():
        bn = zsp.BayesianNet()
        z = bn.normal("z", torch.zeros(4, 2), std=1.0, group_ndims=1)
        bn.normal("x", z.sum(-1), std=torch.tensor(0.5))
        return bn

    x = torch.randn(4)
    log_density = LogDensity(model(), {"x": x})
    positions = log_density.initial(4)
    expected = [model().observe(x=x, z=position.reshape(4, 2)).log_joint().sum() for position in positions]
    torch.testing.assert_close(log_density(positions), torch.stack(expected))


def test_total_size_mask_and_a_log_joint_of_ones_own_are_those_of_the_model():
    @zsp.meta_bayesian_net(scope="scaled")
    def model(n):
        bn = zsp.BayesianNet()
        w = bn.normal("w", 0.0, std=1.0)
        mask = torch.tensor([True, True, False])
        bn.normal("y", w.unsqueeze(-1).expand(*w.shape, 3), std=1.0, group_ndims=1, mask=mask, total_size=n)
        return bn

    y = torch.tensor([1.0, 2.0, float("inf")])
    net = model(None)
    for chain in ((), (1,), (3,)):
        log_density = LogDensity(net, {"y": y})
        position = log_density.initial(chain)
        w = position[..., 0]
        normal = torch.distributions.Normal(0.0, 1.0)
        expected = normal.log_prob(w) + normal.log_prob(y[:2] - w.unsqueeze(-1)).sum(-1)
        torch.testing.assert_close(log_density(position), expected)
    net.log_joint = lambda bn: 2 * bn.cond_log_prob("w")
    torch.testing.assert_close(LogDensity(net, {"y": y})(position), 2 * normal.log_prob(w))


# -- chains ---------------------------------------------------------------------------------------------------------------

CHAINED = {
    "regression": (lambda: regression(X), {"y": Y}, {3: Way.BROADCAST, 5: Way.BROADCAST, 1: Way.BROADCAST}),
    "columns": (lambda: columns(X), {"y": Y}, {3: Way.MAP, 5: Way.MAP, 4: Way.MAP}),
    "slope": (lambda: slope(X[:, 0]), {"y": Y}, {5: Way.MAP, 3: Way.MAP}),
    "supports": (every_support, {"y": torch.tensor(0.3, dtype=torch.float64)}, {3: Way.BROADCAST, 2: Way.BROADCAST}),
    "nested": (nested, {}, {3: Way.BROADCAST}),
}


@pytest.mark.parametrize("build, observed, ways", CHAINED.values(), ids=CHAINED)
def test_chains_equal_a_loop_over_them(build, observed, ways):
    log_density = LogDensity(build(), observed)
    for n_chains, way in ways.items():
        positions = log_density.initial(n_chains)
        expected, expected_gradient = (
            looped(log_density, positions),
            gradient(lambda q: looped(log_density, q), positions),
        )
        torch.testing.assert_close(log_density(positions), expected, atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(gradient(log_density, positions), expected_gradient, atol=1e-10, rtol=1e-10)
        assert log_density._ways[positions.shape[:1]] is way
        other = positions.clone()
        other[0] += 1.0  # one chain moves, the others stay
        assert torch.equal(log_density(other) != log_density(positions), torch.arange(n_chains) == 0)


def test_as_many_chains_as_data_is_the_trap_that_is_looked_for():
    net, w = slope(X[:, 0]), torch.randn(5)
    expected = torch.stack([net.observe(w=one, y=Y).log_joint() for one in w])
    broadcast = net._execute({"w": w, "y": Y}, sample_shape=(5,), with_samples=frozenset({"w"})).log_joint()
    assert broadcast.shape == (5,) and not torch.allclose(broadcast, expected)  # no check of shapes can see it
    torch.testing.assert_close(LogDensity(net, {"y": Y})(w.unsqueeze(-1)), expected)
    log_density = LogDensity(lambda v: -(v["w"] * X[:, 0] - Y).square().sum(), {}, latents={"w": w[0]})
    torch.testing.assert_close(log_density(w.unsqueeze(-1)), looped(log_density, w.unsqueeze(-1)))


def test_a_wrong_term_is_seen_beside_a_large_one_in_float32():
    x, y = 1e3 * X[:, :1].float(), Y.float()

    @zsp.meta_bayesian_net(scope="hidden")
    def model():
        bn = zsp.BayesianNet()
        w = bn.normal("w", torch.zeros(1, dtype=torch.float32), std=1.0, group_ndims=1)
        v = bn.normal("v", w.mean().expand(w.shape[:-1]), std=1.0)  # the mean over all chains
        bn.normal("y", v.unsqueeze(-1) + w @ x.T, std=1e-3, group_ndims=1)
        return bn

    log_density = LogDensity(model(), {"y": y})
    positions = log_density.initial(4)
    assert log_density.dtype == torch.float32 and float(log_density(positions).abs().max()) > 1e9
    assert log_density._ways[torch.Size([4])] is Way.MAP


@pytest.mark.parametrize("build, observed", [case[:2] for case in CHAINED.values()], ids=CHAINED)
def test_any_number_of_chain_axes(build, observed):
    log_density = LogDensity(build(), observed)
    positions = log_density.initial((2, 1, 3))
    flat = positions.reshape(6, -1)
    torch.testing.assert_close(log_density(positions), looped(log_density, flat).reshape(2, 1, 3))
    values = log_density.constrain(positions)
    for name, value in values.items():
        assert value.shape == (2, 1, 3, *log_density.shapes[name])
    torch.testing.assert_close(log_density.unconstrain(values), positions)
    one = log_density.constrain(positions[1, 0, 2])
    for name, value in one.items():
        torch.testing.assert_close(value, values[name][1, 0, 2])


def test_a_model_that_runs_neither_way_is_refused():
    def log_joint(values):
        w = values["w"]
        return -(w @ w) if w[0].item() < 10 else w.sum()

    log_density = LogDensity(log_joint, {}, latents={"w": torch.zeros(3)})
    position = log_density.initial(())
    torch.testing.assert_close(log_density(position), -(position @ position))
    with pytest.raises(ValueError, match=r"cannot be run over 4 chains: it does not broadcast .* or run one chain"):
        log_density(log_density.initial(4))


def test_a_model_that_draws_is_refused():
    @zsp.meta_bayesian_net(scope="dropout", reuse_variables=True)
    def model():
        bn = zsp.BayesianNet()
        w = bn.normal("w", torch.zeros(20), std=1.0, group_ndims=1)
        bn.normal("y", zsp.module("dropout", torch.nn.Dropout)(w).sum(-1), std=1.0)
        return bn

    net = model()
    with pytest.raises(ValueError, match="draws random numbers of its own. Is a module in training mode"):
        LogDensity(net, {"y": torch.tensor(0.0)})
    net.eval()
    assert LogDensity(net, {"y": torch.tensor(0.0)}).n_dims == 20


# -- transforms, tracing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_chains", [(), 3, (2, 2)])
@pytest.mark.parametrize("name", ["columns", "supports"])
def test_first_evaluation_under_transforms_and_tracing(name, n_chains):
    build, observed = CHAINED[name][:2]
    position = LogDensity(build(), observed).initial(n_chains)
    log_density = LogDensity(build(), observed)
    found = torch.func.grad(lambda q: log_density(q).sum())(position)
    expected = gradient(log_density, position)
    torch.testing.assert_close(found, expected)
    assert log_density._ways == LogDensity(build(), observed).prepare(n_chains)._ways
    position.requires_grad_()
    for mode in ("real", "fake"):
        function = functools.partial(gradient_of, LogDensity(build(), observed))
        traced = make_fx(function, tracing_mode=mode, _allow_non_fake_inputs=True)(position)
        torch.testing.assert_close(traced(position)[0], expected)
        assert any(node.target is torch.ops.aten.log_sigmoid_forward.default for node in traced.graph.nodes) == (
            "u" in log_density.names
        )


def test_compiled_after_prepare():
    log_density = LogDensity(every_support(), {"y": torch.tensor(0.3)})
    positions = log_density.initial(3)
    compiled = torch.compile(lambda q: log_density(q), backend="eager", fullgraph=True)
    with pytest.raises(Exception, match=r"Call log_density.prepare\(\(3,\)\) before"):
        compiled(positions)
    log_density.prepare(3)
    torch.testing.assert_close(compiled(positions), log_density(positions))


# -- construction ---------------------------------------------------------------------------------------------------------


def test_layout_dtype_and_initial_positions():
    log_density = LogDensity(every_support(), {"y": torch.tensor(0.3)})
    assert log_density.names == ("theta", "u", "v", "p", "factor", "w", "cuts", "tril")
    assert log_density.shapes["factor"] == (3, 3) and log_density.sizes["factor"] == 3
    assert log_density.n_dims == 1 + 1 + 1 + 2 + 3 + 3 + 3 + 3 and log_density.dtype == torch.float64
    initial = log_density.initial(10_000, generator=torch.Generator().manual_seed(1))
    assert initial.shape == (10_000, 17) and -2 <= initial.min() < -1.99 and 1.99 < initial.max() <= 2
    assert torch.equal(initial, log_density.initial(10_000, generator=torch.Generator().manual_seed(1)))
    assert "17 unconstrained dimensions" in repr(log_density)


def test_the_callers_random_state_is_given_back():
    state = torch.get_rng_state()
    log_density = LogDensity(regression(X), {"y": Y})
    log_density(torch.zeros(3, 4))
    assert torch.equal(torch.get_rng_state(), state)


def test_nodes_without_parameters_follow_the_data():
    @zsp.meta_bayesian_net(scope="flat")
    def model(x):
        bn = zsp.BayesianNet()
        w = bn.flat("w", (3,), constraints.independent(constraints.positive, 1))
        bn.flat("unused", ())
        bn.normal("y", w @ x.T, std=1.0, group_ndims=1)
        return bn

    log_density = LogDensity(model(X.float()), {"y": Y.float()})
    assert log_density.dtype == torch.float32 and log_density.n_dims == 4
    position = log_density.initial(6)
    w = position[:, :3].exp()
    expected = torch.distributions.Normal(w @ X.float().T, 1.0).log_prob(Y.float()).sum(-1) + position[:, :3].sum(-1)
    torch.testing.assert_close(log_density(position), expected)


def test_latents_of_different_dtypes_share_one_vector():
    @zsp.meta_bayesian_net(scope="mixed")
    def model():
        bn = zsp.BayesianNet()
        u = bn.uniform("u", torch.zeros(2, dtype=torch.float32), torch.ones(2, dtype=torch.float32), group_ndims=1)
        bn.normal("w", torch.zeros((), dtype=torch.float64), std=1.0)
        assert u.dtype == torch.float32
        return bn

    log_density = LogDensity(model(), {})
    assert log_density.dtype == torch.float64
    assert bool(gradient(log_density, log_density.initial(3)).isfinite().all())


def test_variables_are_made():
    @zsp.meta_bayesian_net(scope="deep", reuse_variables=True)
    def model():
        bn = zsp.BayesianNet()
        w = bn.normal("w", torch.zeros(2), std=1.0, group_ndims=1)
        bn.normal("y", zsp.module("layer", torch.nn.Linear, 2, 1)(w).squeeze(-1), std=1.0)
        return bn

    net = model()
    log_density = LogDensity(net, {"y": torch.tensor(1.0)})
    assert len(list(net.parameters())) == 2
    assert log_density(log_density.initial(7)).requires_grad


def test_other_observed_values():
    net = regression(X)
    log_density = LogDensity(net, {"x": X, "y": Y})
    position = log_density.initial(3)
    log_density(position)
    batch = log_density.rebind({"x": X[:2], "y": Y[:2]})
    torch.testing.assert_close(batch(position), LogDensity(net, {"x": X[:2], "y": Y[:2]})(position))
    again = log_density.rebind({"x": 2 * X, "y": Y})
    assert again._ways is log_density._ways and batch._ways is not log_density._ways
    torch.testing.assert_close(again(position), LogDensity(regression(2 * X), {"y": Y})(position))


def test_a_callable():
    def log_joint(values):
        w, s = values["w"], values["s"]
        return torch.distributions.Normal(0.0, s).log_prob(values["y"] - (w @ X.T)).sum(-1) - s.squeeze(-1)

    log_density = LogDensity(
        log_joint,
        {"y": Y},
        latents={"w": torch.zeros(3), "s": torch.ones(1)},
        supports={"s": constraints.positive},
    )
    position = log_density.initial(4)
    s = position[:, 3:].exp()
    expected = torch.distributions.Normal(0.0, s).log_prob(Y - position[:, :3] @ X.T).sum(-1) - s.sum(-1)
    torch.testing.assert_close(log_density(position), expected + position[:, 3])
    assert log_density.evaluate(position).values["s"].shape == (4, 1) and log_density.evaluate(position)[1:] == ({}, {})


def test_a_callable_with_tensors_for_bounds():
    supports = {"u": constraints.interval(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 3.0]))}
    log_density = LogDensity(lambda v: v["u"].sum(-1), {}, latents={"u": torch.ones(2)}, supports=supports)
    position = log_density.initial(3)
    u = log_density.constrain(position)["u"]
    assert bool(supports["u"].check(u).all())
    torch.testing.assert_close(log_density.unconstrain({"u": u}), position)


def test_discrete_latents_that_are_summed_out():
    x = torch.tensor([-2.0, 0.5, 1.0, 3.0])

    @zsp.meta_bayesian_net(scope="labels")
    def labelled():
        bn = zsp.BayesianNet()
        means = bn.normal("means", torch.zeros(2), std=3.0, group_ndims=1)
        std = bn.uniform("std", 0.5, 2.0)
        k = bn.categorical("k", torch.zeros(4, 2), group_ndims=1)
        bn.normal("x", means[..., k.long()], std=std, group_ndims=1)
        return bn

    @zsp.meta_bayesian_net(scope="marginal")
    def marginal():
        bn = zsp.BayesianNet()
        means = bn.normal("means", torch.zeros(2), std=3.0, group_ndims=1)
        std = bn.uniform("std", 0.5, 2.0)
        bn.mixture("x", torch.zeros(4, 2), zsp.distributions.Normal(means.expand(4, 2), std), group_ndims=1)
        return bn

    log_density = LogDensity(zsp.enumerate_latents(labelled(), "k", local="k"), {"x": x})
    expected = LogDensity(marginal(), {"x": x})
    assert log_density.names == ("means", "std")
    positions = expected.initial(3)
    torch.testing.assert_close(log_density(positions), expected(positions))
    torch.testing.assert_close(gradient(log_density, positions), gradient(expected, positions))
    torch.testing.assert_close(log_density.constrain(positions), expected.constrain(positions))

    @zsp.meta_bayesian_net(scope="bounded")
    def bounded():
        bn = zsp.BayesianNet()
        k = bn.bernoulli("k", torch.tensor(0.0))
        bn.uniform("u", 0.0, 1.0 + k)
        return bn

    with pytest.raises(ValueError, match="support of 'u' may depend on 'k', which is not possible where other"):
        LogDensity(zsp.enumerate_latents(bounded(), "k"), {})


# -- what the net holds ---------------------------------------------------------------------------------------------------


def test_evaluate_gives_each_chain_its_own_nodes():
    net = regression(X)
    log_density = LogDensity(net, {"y": Y})
    positions = log_density.initial((2, 3))
    for chunk_size in (None, 4):
        found = log_density.evaluate(positions, chunk_size=chunk_size)
        for i, j in ((0, 0), (1, 2)):
            bn = net.observe(y=Y, w=found.values["w"][i, j], std=found.values["std"][i, j])
            torch.testing.assert_close(found.deterministic["largest"][i, j], bn["largest"])
            torch.testing.assert_close(found.log_likelihood["y"][i, j], bn.pointwise_log_prob("y"))
        assert found.log_likelihood["y"].shape == (2, 3, 5)
        torch.testing.assert_close(found.values["std"], positions[..., 3].exp())


def test_evaluate_where_vmap_cannot_follow():
    @zsp.meta_bayesian_net(scope="branch")
    def model():
        bn = zsp.BayesianNet()
        w = bn.normal("w", 0.0, std=1.0)
        bn.deterministic("sign", w.new_tensor(1.0 if w.sum().item() > 0 else -1.0))
        return bn

    log_density = LogDensity(model(), {})
    found = log_density.evaluate(torch.tensor([[-1.0], [2.0], [0.5]]))
    assert found.deterministic["sign"].tolist() == [-1.0, 1.0, 1.0]


# -- refusals -------------------------------------------------------------------------------------------------------------


def net_of(declare):
    @zsp.meta_bayesian_net(scope="refused")
    def model():
        bn = zsp.BayesianNet()
        declare(bn)
        return bn

    return model()


class WithoutSupport(torch.distributions.Normal):
    support = None


REFUSED = {
    "discrete": (lambda bn: bn.bernoulli("k", torch.tensor(0.0)), r"'k' \(bernoulli\) is discrete.*bn.bin_concrete"),
    "samples": (lambda bn: bn.normal("w", 0.0, std=1.0, n_samples=3), r"declares n_samples=3.*adds the chain axis"),
    "certain": (lambda bn: bn.delta("w", torch.tensor(1.0)), r"certain.*bn.deterministic\('w', value\)"),
    "implicit": (lambda bn: bn.implicit("w", torch.zeros(2)), "known through samples only"),
    "empirical": (lambda bn: bn.empirical("w", value_shape=2), "known through samples only"),
    "mask": (lambda bn: bn.normal("w", torch.zeros(2), std=1.0, mask=torch.tensor([True, False])), "has a mask"),
    "total_size": (lambda bn: bn.normal("w", torch.zeros(2), std=1.0, total_size=10), "total_size=10"),
    "support": (lambda bn: bn.stochastic("w", WithoutSupport(0.0, 1.0)), "does not say its support"),
    "bijector": (
        lambda bn: bn.mixture("w", torch.zeros(2), zsp.distributions.Uniform(torch.zeros(2), torch.tensor([1.0, 2.0]))),
        "'w' cannot be mapped to the unconstrained space: no bijector",
    ),
    "infinite bound": (
        lambda bn: bn.truncated_normal("w", 0.0, std=1.0, minval=torch.tensor([0.0, -torch.inf]), maxval=1.0),
        "'w' has an infinite bound",
    ),
    "batch shapes": (
        lambda bn: bn.normal("y", bn.normal("w", 0.0, std=1.0) * torch.ones(3), std=1.0),
        "needs log probabilities of one shape",
    ),
}


@pytest.mark.parametrize("declare, message", REFUSED.values(), ids=REFUSED)
def test_latents_that_cannot_be_sampled(declare, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        LogDensity(net_of(declare), {})


def test_names_that_do_not_fit():
    net = regression(X)
    with pytest.raises(zsp.NodeError, match="has no stochastic node 'v'; it has"):
        LogDensity(net, {"y": Y}, latents=["w", "std", "v"])
    with pytest.raises(ValueError, match="'std' of the net 'regression' is neither observed nor named in latents"):
        LogDensity(net, {"y": Y}, latents=["w"])
    with pytest.raises(ValueError, match="'y' is both observed and named in latents"):
        LogDensity(net, {"y": Y}, latents=["w", "std", "y"])
    with pytest.raises(ValueError, match="observations were given for 'z'"):
        LogDensity(net, {"y": Y, "z": Y})
    with pytest.raises(ValueError, match="has no latent to sample: all its stochastic nodes"):
        LogDensity(net, {"y": Y, "w": torch.zeros(3), "std": torch.tensor(1.0)})
    with pytest.raises(TypeError, match="list of names, but got the string 'w'"):
        LogDensity(net, {"y": Y}, latents="w")
    with pytest.raises(ValueError, match="supports is for a callable"):
        LogDensity(net, {"y": Y}, supports={"std": constraints.positive})
    with pytest.raises(TypeError, match="Call the decorated function first"):
        LogDensity(3, {"y": Y})
    assert LogDensity(net, {"y": Y}, latents=["std", "w"]).names == ("w", "std")


def test_callables_that_do_not_fit():
    def log_joint(values):
        return -values["w"].square().sum(-1)

    with pytest.raises(TypeError, match="give latents={name: example tensor"):
        LogDensity(log_joint, {})
    with pytest.raises(TypeError, match="give latents={name: example tensor"):
        LogDensity(log_joint, {}, latents=["w"])
    with pytest.raises(ValueError, match="supports names 'W', but the latents are 'w'. Did you mean 'w'"):
        LogDensity(log_joint, {}, latents={"w": torch.zeros(2)}, supports={"W": constraints.positive})
    with pytest.raises(ValueError, match="'w' is both observed and a latent"):
        LogDensity(log_joint, {"w": 1.0}, latents={"w": torch.zeros(2)})
    with pytest.raises(ValueError, match="latents is empty"):
        LogDensity(log_joint, {}, latents={})
    with pytest.raises(TypeError, match="'w' has dtype int64"):
        LogDensity(log_joint, {}, latents={"w": torch.zeros(2, dtype=torch.int64)})
    with pytest.raises(ValueError, match="'w' needs at least 1 axes, but its example has shape"):
        LogDensity(log_joint, {}, latents={"w": torch.tensor(0.0)}, supports={"w": constraints.simplex})
    with pytest.raises(ValueError, match="is discrete"):
        LogDensity(log_joint, {}, latents={"w": torch.zeros(2)}, supports={"w": constraints.boolean})
    with pytest.raises(TypeError, match=r"as a scalar tensor, but got shape \[2\]"):
        LogDensity(lambda values: values["w"], {}, latents={"w": torch.zeros(2)})
    with pytest.raises(TypeError, match="as a scalar tensor, but got float"):
        LogDensity(lambda values: 1.0, {}, latents={"w": torch.zeros(2)})


def test_positions_and_values_that_do_not_fit():
    log_density = LogDensity(regression(X), {"y": Y})
    for function in (log_density, log_density.constrain, log_density.evaluate):
        with pytest.raises(ValueError, match=r"4 unconstrained numbers in its last axis \(w: 3, std: 1\), but got"):
            function(torch.zeros(7, 5))
    with pytest.raises(TypeError, match="dtype float32, but the latents have float64"):
        log_density(torch.zeros(7, 4, dtype=torch.float32))
    values = log_density.constrain(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="'W' is no latent; they are 'w', 'std'. Did you mean 'w'"):
        log_density.unconstrain({"W": values["w"]})
    with pytest.raises(ValueError, match="'std' has none"):
        log_density.unconstrain({"w": values["w"]})
    with pytest.raises(ValueError, match=r"'std' has shape \[3\], but \[\*chain, \*\[\]\] is expected"):
        log_density.unconstrain({"w": values["w"], "std": torch.ones(3)})
    with pytest.raises(ValueError, match="given for 'std' is not inside its support"):
        log_density.unconstrain({"w": values["w"], "std": -values["std"]})


def test_a_value_outside_a_support_that_depends_on_another_latent():
    log_density = LogDensity(nested(), {})
    with pytest.raises(ValueError, match="'u'"):
        log_density.unconstrain({"theta": torch.ones(3), "u": torch.full((3,), 2.0)})
