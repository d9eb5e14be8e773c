"""Every kernel leaves the joint law of three models alone, and its posteriors are calibrated; with errors planted in the
kernels themselves, they are not.

A right kernel fails with a probability of at most FALSE_ALARM = 1e-6 a test, and every planted error has to be found at
that rate. MCLMC has no Metropolis test, and keeps the law but for the bias of its step size: it is tested with a step
so small that 2,000 chains do not see the bias, and with one with which they do.
"""

import pytest
import torch

import zsp
from zsp import check
from zsp.inference import log_density as log_densities
from zsp.inference.sampling import chees, hmc, isokinetic, nuts

FALSE_ALARM = 1e-6


@zsp.meta_bayesian_net(scope="scaled")
def scaled(n=4):
    """A real and a positive latent."""
    bn = zsp.BayesianNet()
    mu = bn.normal("mu", torch.tensor(0.0), std=1.0)
    scale = bn.log_normal("scale", torch.tensor(0.0), std=0.4)
    bn.normal("y", mu.expand(n), std=scale, group_ndims=1)
    return bn


@zsp.meta_bayesian_net(scope="shares")
def shares():
    """A latent on the simplex."""
    bn = zsp.BayesianNet()
    p = bn.dirichlet("p", torch.tensor([2.0, 1.0, 3.0]))
    bn.normal("y", p, std=0.2, group_ndims=1)
    return bn


@zsp.meta_bayesian_net(scope="nested")
def nested():
    """A latent on an interval that another one sets."""
    bn = zsp.BayesianNet()
    top = bn.gamma("top", torch.tensor(3.0), torch.tensor(2.0))
    u = bn.uniform("u", torch.tensor(0.0), top)
    bn.normal("y", u, std=0.5)
    return bn


MODELS = {"scaled": scaled, "shares": shares, "nested": nested}
FIXED = {"adapt_step_size": False, "adapt_trajectory_length": False}
KERNELS = {
    "HMC": zsp.HMC(step_size=0.25, n_leapfrogs=6, jitter=0.3, adapt_step_size=False),
    "NUTS": zsp.NUTS(step_size=0.3, max_tree_depth=4, adapt_step_size=False),
    "ChEES": zsp.ChEES(step_size=0.25, trajectory_length=2.0, **FIXED),
    "MAMS": zsp.MAMS(step_size=0.35, trajectory_length=2.5, **FIXED),
}


def geweke(kernel, model, **options):
    options = {"n_chains": 3000, "n_rounds": 25, "false_alarm": FALSE_ALARM, **options}
    return check.geweke(kernel, model(), data="y", **options)


def sbc(kernel, model, n_simulations=200, n_chains=2, n_warmup=15, n_draws=35):
    """The chains of all simulations at once, by the kernel's own step size."""
    net = model()

    def inference(observed, seed):
        log_density = zsp.LogDensity(net, {name: value[0] for name, value in observed.items()})
        f = check.per_simulation(log_density, observed)
        begin = 0.25 * log_density.initial((n_simulations, n_chains))  # where no trajectory diverges
        state = kernel.init(f, begin, seed=seed)
        positions = []
        for i in range(n_warmup + n_draws):
            state, _ = kernel.step(f, state)
            if i >= n_warmup:
                positions.append(state.position)
        return log_density.constrain(torch.stack(positions, 2))  # [simulation, chain, draw, ...]

    return check.sbc(
        net, inference, data="y", n_simulations=n_simulations, batched=True, false_alarm=FALSE_ALARM, progress=False
    )


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_geweke(kernel, model):
    result = geweke(KERNELS[kernel], MODELS[model])
    assert result.passed, result


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_sbc(kernel, model):
    result = sbc(KERNELS[kernel], MODELS[model])
    assert result.passed, result


def test_what_mclmc_keeps_it_keeps_but_for_the_bias_of_its_step_size():
    options = {"adapt_step_size": False, "adapt_length": False, "length": 1.5, "n_steps": 4}
    assert geweke(zsp.MCLMC(step_size=0.1, **options), scaled, n_chains=2000).passed
    assert not geweke(zsp.MCLMC(step_size=1.5, **options), scaled, n_chains=2000).passed


# -- errors in the kernels themselves ---------------------------------------------------------------------------------


def missing_jacobian(patch, kernel):
    """The log density of the constrained values, as if their maps kept volumes."""
    total = log_densities._total
    patch.setattr(log_densities, "_total", lambda log_joint, jacobians, n_axes: total(log_joint, [], n_axes))


def momenta_of_the_wrong_scale(patch, kernel):
    """Their law is not the one that the kinetic energy says: 0.6 of the scale, or for directions, not uniform."""
    kind = type(KERNELS[kernel])
    if kernel == "MAMS":
        refresh = kind._refresh
        patch.setattr(kind, "_refresh", lambda self, normal: refresh(self, normal + 0.8))
        return
    name, field = ("draw_momenta", "values") if kernel == "NUTS" else ("draw_noise", "momentum")
    draw = getattr(kind, name)

    def drawn(self, *arguments):
        numbers = draw(self, *arguments)
        return numbers._replace(**{field: 0.6 * getattr(numbers, field)})

    patch.setattr(kind, name, drawn)


def forgotten_kinetic_energy(patch, kernel):
    """The Metropolis test, or the weights of NUTS, by the log density alone."""
    if kernel == "MAMS":
        turn = isokinetic.turn

        def forgetful(*arguments):
            momentum, change = turn(*arguments)
            return momentum, 0 * change

        patch.setattr(isokinetic, "turn", forgetful)
    else:
        module = {"HMC": hmc, "NUTS": nuts, "ChEES": chees}[kernel]
        patch.setattr(module, "kinetic", lambda momentum: 0 * momentum.sum(-1))


ERRORS = [missing_jacobian, momenta_of_the_wrong_scale, forgotten_kinetic_energy]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
@pytest.mark.parametrize("kernel", KERNELS)
def test_geweke_finds_errors(kernel, error, monkeypatch):
    error(monkeypatch, kernel)
    assert not geweke(KERNELS[kernel], scaled).passed


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_sbc_finds_errors(error, monkeypatch):
    error(monkeypatch, "HMC")
    assert not sbc(KERNELS["HMC"], scaled, n_simulations=500).passed
