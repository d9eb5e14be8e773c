"""Functions of tensors, and loops of them, traced and compiled."""
