"""Markov chains that follow gradients of mini-batches."""
