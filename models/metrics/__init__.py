"""What generated images and retrained detectors are measured by."""
