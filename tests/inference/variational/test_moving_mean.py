"""The moving mean: its arithmetic, and its life as a module."""

import copy

import pytest
import torch

import zsp
from tests.inference.variational.two_latents import copies, objective


def test_it_is_the_weighted_mean_of_the_steps_before():
    moving_mean = zsp.MovingMean(decay=0.75)
    steps = [torch.tensor([1.0, 3.0]), torch.tensor([[5.0]]), torch.tensor(-1.0)]
    found = [float(moving_mean([signal])[0]) for signal in steps]
    assert found[0] == 0.0  # nothing was seen
    assert found[1] == pytest.approx(2.0)  # not pulled towards zero
    assert found[2] == pytest.approx((0.75 * 2.0 + 5.0) / 1.75)
    after = (0.75**2 * 2.0 + 0.75 * 5.0 - 1.0) / (0.75**2 + 0.75 + 1)
    assert float(moving_mean.mean / moving_mean.weight) == pytest.approx(after)


def test_it_keeps_one_mean_a_node_and_none_in_evaluation_mode():
    moving_mean = zsp.MovingMean()
    moving_mean([torch.tensor(1.0), torch.tensor(10.0)])
    assert [float(m) for m in moving_mean.eval()([torch.tensor(5.0), torch.tensor(5.0)])] == pytest.approx([1.0, 10.0])
    assert [float(m) for m in moving_mean([torch.tensor(5.0), torch.tensor(5.0)])] == pytest.approx([1.0, 10.0])
    with pytest.raises(ValueError, match="has followed 2 node.* in which 3 nodes need a baseline"):
        moving_mean.train()([torch.zeros(())] * 3)


def test_it_is_saved_loaded_copied_and_moved():
    moving_mean = zsp.MovingMean(decay=0.5)
    moving_mean([torch.tensor(1.0), torch.tensor(10.0)])
    again = zsp.MovingMean(decay=0.5)
    again.load_state_dict(moving_mean.state_dict())
    for other in (again, copy.deepcopy(moving_mean)):
        assert torch.equal(other.mean, moving_mean.mean) and torch.equal(other.weight, moving_mean.weight)
    assert set(moving_mean.state_dict()) == {"mean", "weight"}
    single = moving_mean.to(torch.float32)
    assert single([torch.zeros(()), torch.zeros(())])[1].dtype == torch.float32
    assert list(moving_mean.parameters()) == []


def test_the_objective_feeds_it_the_signals_of_its_nodes():
    moving_mean = zsp.MovingMean()
    bound = objective(zsp.elbo, ("bernoulli", "bernoulli"), copies(500), 1)
    bound.reinforce(moving_mean=moving_mean)
    means = moving_mean.mean / moving_mean.weight
    scores = bound._scores([(bound.variational, n) for n in bound.variational._stochastic_nodes()], True)
    torch.testing.assert_close(means, torch.stack([score.signal.mean() for score in scores]))
    assert means[0] != means[1], "each node has the terms downstream of it"


def test_a_decay_outside_the_interval():
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\).*but got 1.0"):
        zsp.MovingMean(1.0)
    assert repr(zsp.MovingMean(0.9)) == "MovingMean(decay=0.9)"


def test_room_for_more_nodes_is_not_made_in_a_transform():
    moving_mean = zsp.MovingMean()

    def function(x):
        return moving_mean([x, x])[0]

    with pytest.raises(RuntimeError, match="Run one step eagerly before"):
        torch.func.vmap(function)(torch.zeros(3))
