"""The training loop and what it is made of: mini-batches, steps run eagerly or compiled, and what they measure."""
