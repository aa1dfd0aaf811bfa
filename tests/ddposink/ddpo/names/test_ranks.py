"""TRL's methods in two processes: one model, and the same as the engine's."""

from __future__ import annotations

from pathlib import Path

import torch

from helpers.ranks import two_ranks

RANK = """
    import os, random, sys
    sys.path.insert(0, {tests!r})
    import torch
    torch.set_num_threads(1)
    from safetensors.torch import save_file
    from helpers.tiny import PROMPTS, brightness, tiny_pipeline
    from ddposink.ddpo.trl_names import DDPOConfig, DDPOTrainer
    class Mine(DDPOTrainer):
        def loss(self, advantages, clip_range, ratio):
            return super().loss(advantages, clip_range, ratio)
    weights = {{}}
    for kind in (DDPOTrainer, Mine):
        config = DDPOConfig(sample_num_steps=3, sample_batch_size=2, train_batch_size=2, mixed_precision=None,
                            train_learning_rate=3e-3, per_prompt_stat_tracking=True,
                            per_prompt_stat_tracking_min_count=2, logdir={folder!r} + "/" + kind.__name__)
        scorer = lambda images, prompts, _: (brightness(images, list(prompts)), {{}})
        trainer = kind(config, scorer, lambda: (random.choice(PROMPTS), {{}}), tiny_pipeline(0))
        trainer.train(2)
        for n, w in trainer.engine._learner.weights.items():
            weights[f"{{kind.__name__}}.{{n}}"] = w.detach().clone().contiguous()
    save_file(weights, {folder!r} + f"/{{os.environ['RANK']}}.safetensors")
    torch.distributed.destroy_process_group()
"""


def test_two_processes(tmp_path: Path) -> None:
    first, second = two_ranks(RANK, tmp_path)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    by_steps = {name: value for name, value in first.items() if name.startswith("Mine.")}
    for name, value in by_steps.items():
        assert torch.allclose(value, first[name.replace("Mine.", "DDPOTrainer.")], atol=1e-4), name
    assert (tmp_path / "Mine" / "checkpoints" / "checkpoint_1").is_dir()
