"""Chains in parts on threads against all chains in one call."""

import threading
from typing import NamedTuple

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

import zsp
from zsp.inference.sampling import runner
from zsp.inference.sampling.kernel import Density, Transitions, Tuning
from zsp.inference.sampling.metric import Diagonal
from zsp.inference.sampling.side_by_side import Parts, SideBySide, number_of_parts, together

N_DIMS = 3


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("n_chains", "n_threads", "expected"), [(16, 2, 2), (24, 2, 2), (27, 4, 3), (37, 4, 1), (64, 16, 8), (15, 2, 1), (1, 8, 1)]
)
def test_parts_are_equal_not_too_small_and_no_more_than_threads(n_chains, n_threads, expected):
    assert number_of_parts(n_chains, n_threads) == expected


def gaussian(position):
    scale = torch.arange(1.0, N_DIMS + 1)
    return -0.5 * (position / scale).square().sum(-1)


@pytest.mark.parametrize("n_parts", [2, 3])
@pytest.mark.parametrize("kernel", [zsp.NUTS(max_tree_depth=4), zsp.HMC(n_leapfrogs=3, jitter=0.5)], ids=["NUTS", "HMC"])
def test_parts_that_advance_apart_are_the_chains_that_advance_together(kernel, n_parts):
    density, generator = Density(gaussian), torch.Generator().manual_seed(0)
    position = torch.randn(6, N_DIMS, generator=generator)
    metric = Diagonal(torch.ones(N_DIMS))
    adaptation = kernel.start_adaptation(torch.linspace(0.2, 1.4, 6), position)
    state = kernel.begin(density, position, metric, adaptation, generator)
    noise = kernel.draw_noise(30, position, generator)
    tuning = Tuning(metric, torch.tensor(0.8), torch.tensor(1.0), kernel.draw_momenta(30, position, generator))
    parts = Parts(n_parts, kernel.chain_axes)
    apart = list(zip(parts.of_state(state), parts.of_chains(noise, 1), parts.of_tuning(tuning), strict=True))

    @torch.no_grad()
    def advance(state, noise, tuning):
        for i in range(30):
            state, _ = kernel.advance(density, state, tree_map(lambda leaf, i=i: leaf[i], noise), tuning)
        return state

    whole = advance(state, noise, tuning)
    joined = parts.join_states([advance(*part) for part in apart])
    for a, b in zip(tree_leaves(joined), tree_leaves(whole), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    for a, b in zip(tree_leaves(parts.join_states(parts.of_state(state))), tree_leaves(state), strict=True):
        assert torch.equal(a, b)


class Count(NamedTuple):
    number: torch.Tensor
    limit: torch.Tensor


def counting(state, noise, tuning):
    """Steps by the noise, until a chain is at its limit; a transition ends where a number is odd."""
    numbers = [state.number]
    for step in noise:
        numbers.append(numbers[-1] + step)
        if (numbers[-1] >= state.limit).any():
            break
    made = torch.stack(numbers[1:])
    return Count(numbers[-1], state.limit), Transitions(made % 2 == 1, made[..., None], made[..., None], (made,))


def test_all_parts_end_with_the_first_that_ends():
    state = Count(torch.zeros(6), torch.tensor([100.0, 7, 100, 5, 100, 100]))
    noise = torch.randint(1, 3, (20, 6)).double()
    tuning = Tuning(Diagonal(torch.ones(1)), torch.tensor(0.8), torch.tensor(0.0))
    expected, expected_rows, n_steps = together(counting)(state, noise, tuning)
    side_by_side = SideBySide(counting, Parts(3, {}))
    found, rows, n_made = side_by_side(state, noise, tuning)
    side_by_side.close()
    assert n_made == n_steps < 6
    assert torch.equal(found.number, expected.number)
    order, expected_order = (torch.argsort(made.chain, stable=True) for made in (rows, expected_rows))
    for a, b in zip(tree_leaves(rows), tree_leaves(expected_rows), strict=True):
        assert torch.equal(a[order], b[expected_order])
    for chain in range(6):
        assert rows.number[rows.chain == chain].tolist() == list(range(int((rows.chain == chain).sum())))
        assert (rows.position[rows.chain == chain].diff(dim=0) > 0).all()


def test_an_error_in_a_thread_is_raised():
    def failing(state, noise, tuning):
        raise ValueError(f"of {len(state.number)} chains")

    tuning = Tuning(Diagonal(torch.ones(1)), torch.tensor(0.8), torch.tensor(0.0))
    side_by_side = SideBySide(failing, Parts(2, {}))
    with pytest.raises(ValueError, match="^of 2 chains$"):
        side_by_side(Count(torch.zeros(4), torch.zeros(4)), torch.ones(3, 4), tuning)
    side_by_side.close()


@zsp.meta_bayesian_net()
def regression(x):
    bn = zsp.BayesianNet()
    weights = bn.normal("weights", torch.zeros(N_DIMS), std=1.0, group_ndims=1)
    bn.bernoulli("y", weights @ x.T, group_ndims=1)
    return bn


@pytest.mark.filterwarnings("ignore:.*effective sample size:UserWarning", "ignore:.*R-hat:UserWarning")
@pytest.mark.parametrize("kernel", [zsp.NUTS(), zsp.HMC(n_leapfrogs=5)], ids=["NUTS", "HMC"])
def test_a_run_on_two_threads_is_that_on_one(kernel, two_threads, monkeypatch):
    x = torch.randn(40, N_DIMS)
    y = torch.bernoulli((x[:, 0] - x[:, 1]).sigmoid())
    threads = set()

    def run():
        return zsp.mcmc(
            regression(x), {"y": y}, kernel=kernel, n_chains=16, n_warmup=15, n_samples=20, compile=True, progress=False
        )

    side_by_side = SideBySide.__init__

    def watched(self, block, parts):
        def call(*arguments):
            threads.add((threading.current_thread().name, torch.get_num_threads()))
            return block(*arguments)

        side_by_side(self, call, parts)

    monkeypatch.setattr(SideBySide, "__init__", watched)
    whole = run()
    assert not threads
    monkeypatch.setattr(runner, "FOR_SIDE_BY_SIDE", 0)
    apart, again = run(), run()
    assert threads >= {("zsp-chains_0", 1), ("zsp-chains_1", 1)} and {n for _, n in threads} == {1}
    assert torch.get_num_threads() == 2
    assert not any(thread.name.startswith("zsp-chains") for thread in threading.enumerate())
    torch.testing.assert_close(apart["weights"], whole["weights"], rtol=1e-8, atol=1e-8)
    assert torch.equal(apart["weights"], again["weights"])
    assert torch.equal(apart.info["n_leapfrogs"], whole.info["n_leapfrogs"])
