"""What a process does that ``mcmc_process`` times or weighs.

::

    python -m benchmarks.samplers.process zsp eight_schools 1000

Each library is imported by its own function alone, and used as its documentation says.
"""

from __future__ import annotations

import resource
import sys

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
    before = _peak_mib()
    draws = zsp.mcmc(
        model, observed, kernel=zsp.NUTS(), n_samples=int(n_draws), n_warmup=int(n_warmup), n_chains=int(n_chains),
        progress=False,
    )  # fmt: skip
    assert draws["w"].shape == (int(n_chains), int(n_draws), 25)
    print(_peak_mib() - before)


def _peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


if __name__ == "__main__":
    {"zsp": zsp, "numpyro": numpyro, "memory": memory}[sys.argv[1]](*sys.argv[2:])
