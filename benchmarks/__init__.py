"""zsp beside its peers and hand-written PyTorch: ``python -m benchmarks`` prints one table."""
