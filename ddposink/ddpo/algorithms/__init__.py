"""What a training learns by: `ddpo` is the engine's own, the others are one file each.

``nft`` (DiffusionNFT) · ``dpo`` (Diffusion-DPO) · ``draft`` (DRaFT-K). They share sampling, rewards,
evaluation, records and checkpoints; `rules` says, without torch, what each may be asked and what it costs.
"""
