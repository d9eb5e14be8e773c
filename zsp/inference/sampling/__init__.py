"""Sampling: kernels, the run loop, and draws."""
