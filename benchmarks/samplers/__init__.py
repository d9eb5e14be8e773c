"""zsp's samplers and those of its peers behind one interface, a file each.

Every file writes the models as its library's users do. It has ``log_density(problem, position)``,
``nuts(problem, ...)`` which gives a function from a seed to a run; and mostly ``hmc(problem, ...)``, which gives one
that times transitions.
"""
