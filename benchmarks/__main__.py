"""All benchmarks, or those named, in one table."""

from benchmarks import (
    compiled_fit,
    estimators,
    import_time,
    mcmc,
    mcmc_process,
    memory,
    node_overhead,
    sgmcmc,
    vae_step,
)
from benchmarks.timing import main

main(
    [
        vae_step.BENCHMARK,
        compiled_fit.BENCHMARK,
        estimators.BENCHMARK,
        mcmc.BENCHMARK,
        mcmc_process.BENCHMARK,
        sgmcmc.BENCHMARK,
        node_overhead.BENCHMARK,
        import_time.BENCHMARK,
        memory.BENCHMARK,
    ]
)
