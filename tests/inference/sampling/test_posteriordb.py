"""NUTS on the posteriors of posteriordb, against their reference draws or quadrature.

How often a right sampler would fail here, with other random numbers: each mean and each standard deviation with
probability 7e-8 (5.4 standard errors of both answers), 536 of them 4e-5 in all; R-hat by what ``rhat_false_alarm`` says,
at most RHAT_FALSE_ALARM a run, as each run asserts of itself; the numbers of draws were chosen for a tenth of that.
"""

import math
import warnings

import pytest
import scipy.stats
import torch

import zsp
from tests import posteriors
from tests.posteriors import Reference
from zsp.inference import diagnostics

Z = 5.4  # standard errors
MIN_ESS = 1000  # so that a shift of 5.4 / sqrt(1000) = 0.17 standard deviations is seen
MAX_RHAT = 1.01
RHAT_FALSE_ALARM = 1e-3

# Draws of each chain, with a diagonal and with a dense mass matrix.
N_CHAINS, N_WARMUP = 8, 300
N_SAMPLES = {
    "eight_schools-eight_schools_noncentered": (1000, 800),
    "earnings-logearn_height": (2600, 500),
    "kidiq-kidscore_momiq": (1900, 500),
    "mesquite-logmesquite": (1300, 500),
    "sblrc-blr": (1600, 500),
    "arK-arK": (750, 400),
    "garch-garch11": (1000, 700),
    "gp_pois_regr-gp_regr": (450, 450),
    "radon_mn-radon_partially_pooled_centered": (2200, 1300),
    "wells_data-wells_dist": (1200, 450),
}
# Runs of some 10,000 steps; for the others compiling takes less time than it saves.
EAGER = {
    ("eight_schools-eight_schools_noncentered", "diagonal"),
    ("eight_schools-eight_schools_noncentered", "dense"),
    ("mesquite-logmesquite", "dense"),
    ("sblrc-blr", "dense"),
    ("arK-arK", "dense"),
    ("gp_pois_regr-gp_regr", "diagonal"),
    ("gp_pois_regr-gp_regr", "dense"),
}
CENTRED = "eight_schools-eight_schools_centered"


def sample(posterior, mass_matrix, n_samples, **options):
    options = {"n_chains": N_CHAINS, "n_warmup": N_WARMUP, "progress": False, "compile": False, **options}
    kernel = zsp.NUTS(mass_matrix=mass_matrix)
    return zsp.mcmc(posterior.model, posterior.observed, kernel=kernel, n_samples=n_samples, **options)


def rhat_false_alarm(ess, n_chains):
    r"""The probability, at most, that R-hat of any of these scalars exceeds MAX_RHAT although the chains agree.

    The means of m = 2 n_chains half chains, each worth e = ess / m draws, have a variance of chi^2 / (m - 1) / e with
    m - 1 degrees of freedom, in units of the variance within: R^2 - 1 < chi^2 / (m - 1) / e. Twice, for bulk and folded.
    """
    m = 2 * n_chains
    limit = (MAX_RHAT**2 - 1) * (ess / m) * (m - 1)
    return 2 * scipy.stats.chi2.sf(limit.numpy(), m - 1).sum()


def assert_reference(draws, reference):
    """Every mean and standard deviation is that of the reference; the draws are enough to tell, and agree."""
    false_alarm = 0.0
    for name, expected in reference.items():
        values = draws[name]
        ess = torch.minimum(diagnostics.ess_bulk(values), diagnostics.ess_mean(values))
        assert ess.min() >= MIN_ESS, f"ESS of {name}: {ess}"
        rhat = diagnostics.rhat(values)
        assert rhat.max() < MAX_RHAT, f"R-hat of {name}: {rhat}"
        false_alarm += rhat_false_alarm(ess, draws.n_chains)
        for what, found, error, wanted, other_error in (
            ("mean", values.mean((0, 1)), diagnostics.mcse_mean(values), expected.mean, expected.mcse_mean),
            ("sd", values.flatten(0, 1).std(0), diagnostics.mcse_sd(values), expected.sd, expected.mcse_sd),
        ):
            z = (found - wanted) / (error.square() + other_error.square()).sqrt()
            assert z.abs().max() < Z, f"{what} of {name}: {found}, expected {wanted}, z scores {z}"
    assert false_alarm < RHAT_FALSE_ALARM, f"draws for a false-alarm rate of R-hat of {false_alarm:.2g}"


@pytest.mark.parametrize("mass_matrix", ["diagonal", "dense"])
@pytest.mark.parametrize("name", N_SAMPLES)
@pytest.mark.filterwarnings("ignore:.*diverging trajectories:UserWarning")
def test_means_and_standard_deviations_are_those_of_the_reference(name, mass_matrix, data_dir):
    posterior = posteriors.load(data_dir, name)
    n_samples = N_SAMPLES[name][mass_matrix == "dense"]
    draws = sample(posterior, mass_matrix, n_samples, compile=(name, mass_matrix) not in EAGER)
    assert_reference(draws, posterior.reference)
    assert draws.info.is_divergent.double().mean() < 0.005


@pytest.mark.parametrize("mass_matrix", ["diagonal", "dense"])
def test_the_centred_eight_schools_are_reported(mass_matrix, data_dir):
    """No sampler of this kind can follow the funnel's neck: what counts is that the user is told."""
    posterior = posteriors.load(data_dir, CENTRED)
    with pytest.warns(UserWarning, match="diverging trajectories|BFMI is below|R-hat is above") as caught:
        draws = sample(posterior, mass_matrix, 250, n_chains=4, n_warmup=100)
    assert str(caught[0].message) == "\n".join(draws.problems())
    assert "! " in repr(draws.summary()), "and the table says it again"


def test_a_shift_of_a_fifth_of_a_standard_deviation_is_seen(data_dir):
    """And a spread that is off by a seventh: the comparison can fail."""
    posterior = posteriors.load(data_dir, "sblrc-blr")
    draws = sample(posterior, "dense", 450)
    for name, expected in posterior.reference.items():
        shifted = expected._replace(mean=expected.mean + 0.2 * expected.sd)
        wider = expected._replace(sd=expected.sd * 1.15)
        for wrong in (shifted, wider):
            with pytest.raises(AssertionError, match=f"(mean|sd) of {name}.*z scores"):
                assert_reference(draws, {name: wrong})


def test_a_cholesky_factorisation_that_fails_ends_a_trajectory_and_not_the_run(data_dir):
    """A Gaussian process's covariance far out is singular to rounding, in some chains: no density there, no error."""
    posterior = posteriors.load(data_dir, "gp_pois_regr-gp_regr")
    log_density = zsp.LogDensity(posterior.model, posterior.observed)
    far = torch.tensor([[0.0, 0.0, 0.0], [4.0, 9.0, -40.0]])
    with pytest.raises(torch.linalg.LinAlgError):
        log_density(far)
    hmc = zsp.HMC(step_size=1e6, n_leapfrogs=1, adapt_step_size=False)
    state = hmc.init(log_density, far[:1].expand(5, 3).clone(), seed=0)
    state, info = hmc.step(log_density, state)
    assert not info.is_accepted.any() and info.is_divergent.all() and state.log_density.isfinite().all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the few draws' warnings
        draws = sample(posterior, "diagonal", 5, n_warmup=20, seed=1)
    assert math.isfinite(draws["sigma"].sum())


def test_the_rate_of_false_alarms_of_rhat_is_at_most_the_one_stated():
    """Of 2,000 sets of four chains that agree: where 3% may be above 1.01, no more are."""
    values = torch.randn(4, 110, 2000)  # eight halves of 55 draws
    stated = rhat_false_alarm(torch.tensor([440.0]), 4)
    found = (diagnostics.rhat(values) > MAX_RHAT).double().mean().item()
    assert 0.0 < found < stated, (found, stated)


def test_the_references_are_those_of_the_file(data_dir):
    """The scalars of a node are in its order, and the error of a standard deviation is a normal distribution's."""
    reference = posteriors.load(data_dir, "kidiq-kidscore_momiq").reference
    assert isinstance(reference["beta"], Reference) and reference["beta"].mean.shape == (2,)
    assert reference["beta"].mean[0] > 20 > 1 > reference["beta"].mean[1] > 0
    assert torch.allclose(reference["sigma"].mcse_sd * 2**0.5, reference["sigma"].mcse_mean)
