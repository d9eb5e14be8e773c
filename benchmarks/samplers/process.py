"""What a process does that ``mcmc_process`` times or weighs.

::

    python -m benchmarks.samplers.process zsp eight_schools 1000

Each library is imported by its own function alone, and used as its documentation says.
"""

from __future__ import annotations

import sys

from benchmarks.resident import largest_mib
from benchmarks.samplers import problems


def zsp(problem: str, n: str) -> None:
    """n warm-up transitions and n draws of four chains."""
    import torch

    import zsp
    from benchmarks.samplers.zsp_chains import target

    torch.set_num_threads(1)
    model, observed, _ = target(getattr(problems, problem)())
    draws = zsp.mcmc(model, observed, kernel=zsp.NUTS(), n_samples=int(n), n_warmup=int(n), progress=False)
    print({name: value.mean().item() for name, value in draws.items()})


def numpyro(problem: str, n: str) -> None:
    """The same with NumPyro."""
    from jax import random
    from numpyro.infer import MCMC, NUTS

    from benchmarks.samplers.numpyro_models import target

    chains = MCMC(
        NUTS(**target(getattr(problems, problem)())), num_warmup=int(n), num_samples=int(n), num_chains=4,
        chain_method="vectorized", progress_bar=False,
    )  # fmt: skip
    chains.run(random.PRNGKey(0))
    print({name: value.mean().item() for name, value in chains.get_samples().items()})


def memory(n_chains: str, n_draws: str, n_warmup: str) -> None:
    """The largest resident size of a run of zsp, less that after the import, in MiB."""
    import torch

    import zsp
    from benchmarks.samplers.zsp_chains import target

    torch.set_num_threads(1)
    model, observed, _ = target(problems.logistic_regression())
    before = largest_mib()
    draws = zsp.mcmc(
        model, observed, kernel=zsp.NUTS(), n_samples=int(n_draws), n_warmup=int(n_warmup), n_chains=int(n_chains),
        progress=False,
    )  # fmt: skip
    assert draws["w"].shape == (int(n_chains), int(n_draws), 25)
    print(largest_mib() - before)


def network_memory(n_chains: str, n_steps: str) -> None:
    """The largest resident size of a process with SGHMC on a net 784-400-400-10 and 60,000 images, in MiB."""
    import torch
    from torch import nn

    import zsp

    torch.set_num_threads(1)
    net = nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 10))
    model = zsp.models.bayesian(net, likelihood=zsp.models.CategoricalLikelihood(), total_size=60_000)
    data = {"x": torch.rand(60_000, 784), "y": torch.randint(10, (60_000,))}
    weights = {name: value.detach() for name, value in net.named_parameters()}
    draws = zsp.mcmc(
        model, data, batch_size=100, kernel=zsp.SGHMC(1e-7), n_chains=int(n_chains), n_samples=int(n_steps), n_warmup=0,
        init={name: value.expand(int(n_chains), *value.shape) for name, value in weights.items()}, progress=False,
        predict=zsp.RunningPredictions(
            lambda latents: zsp.predict(model, latents, {"x": data["x"][:100]}, names=["output"])
        ),
    )  # fmt: skip
    assert draws["0.weight"].shape == (int(n_chains), 1, 400, 784)
    print(largest_mib())


if __name__ == "__main__":
    {"zsp": zsp, "numpyro": numpyro, "memory": memory, "network_memory": network_memory}[sys.argv[1]](*sys.argv[2:])
