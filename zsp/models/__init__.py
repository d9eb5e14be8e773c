"""Ready models, one a file; read one before you write its cousin."""

from zsp.models.vae import VAE, build_vae, generator

__all__ = ["VAE", "build_vae", "generator"]
