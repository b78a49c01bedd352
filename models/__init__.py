"""What needs gradients or weights: conditioning, losses, training, sampling, detectors, metrics."""
