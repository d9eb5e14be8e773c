"""What the training loop is made of: mini-batches, steps run eagerly or compiled, and what they measure."""
