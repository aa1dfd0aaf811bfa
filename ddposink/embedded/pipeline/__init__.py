"""How the embedded Stable Diffusion pipeline was trained: autoencoder, then UNet and text encoder."""
