"""Is an inference routine right? Simulation-based calibration and the joint distribution test.

::

    def inference(observed, seed):
        return zsp.mcmc(model, observed, kernel=zsp.NUTS(), progress=False, seed=seed)

    result = zsp.check.sbc(model, inference, data="y")
    print(result)                            # passed or failed, and a p value for every quantity
    result.plot().savefig("calibration.png")

    print(zsp.check.geweke(zsp.HMC(step_size=0.1), model, data="y"))
"""

from zsp.check.geweke import GewekeResult, geweke
from zsp.check.sbc import SBCResult, sbc
from zsp.check.simulation import per_simulation

__all__ = ["GewekeResult", "SBCResult", "geweke", "per_simulation", "sbc"]
