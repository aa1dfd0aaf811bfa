"""The model card that a trainer saves beside what it trained."""

from __future__ import annotations

from collections.abc import Iterable

TEXT = """---
library_name: diffusers
{base_model}tags:
{tags}
---

# {name}

A Stable Diffusion model{of} fine-tuned with DDPO ([paper](https://huggingface.co/papers/2305.13301)): policy
gradients on a reward, by `ddposink`.{data}

```python
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained(folder)
pipeline.load_lora_weights(folder)  # if it was trained with LoRA
```

```bibtex
@inproceedings{{black2024training,
    title = {{Training Diffusion Models with Reinforcement Learning}},
    author = {{Kevin Black and Michael Janner and Yilun Du and Ilya Kostrikov and Sergey Levine}},
    booktitle = {{International Conference on Learning Representations}},
    year = 2024
}}
```
"""


def model_card(name: str, base: str | None, dataset: str | None, tags: Iterable[str]) -> str:
    """README.md of a model; ``base`` is the hub's name of what was fine-tuned, if it has one."""
    return TEXT.format(
        name=name,
        base_model=f"base_model: {base}\n" if base else "",
        of=f" ({base})" if base else "",
        data=f" Trained on {dataset}." if dataset else "",
        tags="\n".join(f"- {tag}" for tag in sorted(set(tags))),
    )
