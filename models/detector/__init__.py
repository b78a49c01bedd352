"""MMDetection detectors: configs, training, inference."""
