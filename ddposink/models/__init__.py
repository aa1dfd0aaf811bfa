"""Language and diffusion models by reference, their shapes, and the contrastive encoder."""
