"""The layout-conditioned diffusion model: modules, conditioning, sampling."""
