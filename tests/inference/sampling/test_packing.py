"""Positions of any structure and any number of chain axes, packed and unpacked."""

import pytest
import torch

from zsp.inference.sampling.packing import Packing


def log_density(position):
    return -position["a"].square().sum(-1) - position["b"].square() - position["c"].square().flatten(2).sum(-1)


def position(*chain):
    return {"a": torch.randn(*chain, 3), "b": torch.randn(*chain), "c": torch.randn(*chain, 2, 2)}


def test_a_dict_is_packed_and_unpacked_with_two_chain_axes():
    given = position(4, 5)
    packing = Packing(given, log_density)
    assert packing.chain_shape == (4, 5)
    packed = packing.pack(given)
    assert packed.shape == (20, 3 + 1 + 4)
    back = packing.unpack(packed)
    assert list(back) == list(given) and all(back[name].equal(given[name]) for name in given)
    assert packing.packed(log_density)(packed).equal(log_density(given).flatten())
    assert packing.unflatten(torch.arange(20))[1, 2] == 7


@pytest.mark.parametrize("shape", [(3,), (6, 3), (2, 3, 3)])
def test_a_tensor_with_any_number_of_chain_axes(shape):
    given = torch.randn(shape)
    packing = Packing(given, lambda q: -q.square().sum(-1))
    assert packing.pack(given).shape == (given[..., 0].numel(), 3)
    assert packing.unpack(packing.pack(given)).equal(given)


def test_one_number_for_each_chain():
    given = torch.randn(6)
    packing = Packing(given, lambda q: -q.square())
    assert packing.pack(given).shape == (6, 1) and packing.unpack(packing.pack(given)).equal(given)


def test_a_log_density_that_sums_over_the_chains_is_refused():
    with pytest.raises(ValueError, match=r"the log density has shape \[3\].*'position' has shape \[6, 3\].*sum over"):
        Packing(torch.randn(6, 3), lambda q: -q.square().sum(0))
    with pytest.raises(ValueError, match=r"has shape \[4\], so that these are the chain axes, but 'c' has shape \[5"):
        Packing({"a": torch.randn(4), "c": torch.randn(5, 4)}, lambda q: q["a"])
