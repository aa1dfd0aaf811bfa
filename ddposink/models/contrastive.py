"""A small image–text encoder, the embedded stand-in for CLIP: does this picture show what the prompt says?

It was trained on 1,412 captioned emoji and knows nothing else (`ddposink.train_encoder`). Its cosine is the
reward `alignment`; the layer before its image projection is the feature space in which this project
measures diversity. Neither is comparable with numbers of CLIP.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddposink.assets.hub import one_line
from ddposink.errors import Unavailable

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = Path(__file__).parents[1] / "data" / "emoji-clip"
FILES = ("config.json", "model.safetensors")


@dataclass(frozen=True)
class Shape:
    """Sizes of both towers; ``words`` are the known ones, every other word counts as unknown."""

    words: tuple[str, ...]
    size: int = 64  # pictures are resized to size × size
    channels: tuple[int, ...] = (16, 48, 96, 160)
    features: int = 256
    text_width: int = 192
    dim: int = 128


class Encoder:
    """Both towers in evaluation mode and without gradients; see `load_encoder`."""

    def __init__(self, shape: Shape, towers: Any, device: str = "cpu") -> None:
        self.shape, self.towers, self.device = shape, towers.to(device).eval().requires_grad_(False), device
        self.words = {word: i + 1 for i, word in enumerate(shape.words)}

    def image(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] → (B, dim) of length 1."""
        return self.project(self.features(images))

    def project(self, features: Tensor) -> Tensor:
        """(B, features) of `features` → (B, dim) of length 1, as `image` gives them."""
        return self.towers.image_embedding(features)

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] → (B, features): the layer before the projection, e.g. for diversity.

        The weights have no gradient; pictures that have one keep it.
        """
        import torch

        return self.towers.image_features(fit(images.to(self.device, torch.float32), self.shape.size))

    def text(self, texts: Sequence[str]) -> Tensor:
        """B texts → (B, dim) of length 1. Word order does not matter."""
        import torch

        with torch.no_grad():
            return self.towers.text_embedding(*self.tokens(texts))

    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Word ids of all texts in a row and where each text begins; 0 is any unknown word."""
        import torch

        ids: list[int] = []
        starts: list[int] = []
        for text in texts:
            starts.append(len(ids))
            known = [self.words[word] for word in words_of(text) if word in self.words]
            ids += known or [0]
        return torch.tensor(ids, device=self.device), torch.tensor(starts, device=self.device)


def words_of(text: str) -> list[str]:
    """The words of a caption or prompt, lower case; hyphens and apostrophes part words."""
    return re.findall(r"[^\W_]+", text.lower())


def fit(images: Tensor, size: int) -> Tensor:
    """(B, 3, H, W) → (B, 3, size, size), antialiased where it shrinks."""
    import torch.nn.functional as F

    if tuple(images.shape[-2:]) == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)


def make_towers(shape: Shape) -> Any:
    """Both towers with fresh weights, as a torch module; its parameters are what is saved."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Residual(nn.Module):
        def __init__(self, inside: int, outside: int) -> None:
            super().__init__()
            self.down = nn.Conv2d(inside, outside, 3, stride=2, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(outside)
            self.conv = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
            self.conv_norm = nn.BatchNorm2d(outside)

        def forward(self, x: Tensor) -> Tensor:
            x = F.silu(self.norm(self.down(x)))
            return F.silu(x + self.conv_norm(self.conv(x)))

    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            steps = (3, *shape.channels)
            self.blocks = nn.Sequential(*(Residual(a, b) for a, b in pairwise(steps)))
            self.cells = nn.Linear(
                shape.channels[-1] * (shape.size >> len(shape.channels)) ** 2, shape.features
            )
            self.image_projection = nn.Linear(shape.features, shape.dim)
            self.words = nn.EmbeddingBag(len(shape.words) + 1, shape.text_width, mode="mean")
            self.text_hidden = nn.Linear(shape.text_width, 2 * shape.text_width)
            self.text_projection = nn.Linear(2 * shape.text_width, shape.dim)
            self.log_scale = nn.Parameter(torch.tensor(10.0).log())

        def image_features(self, images: Tensor) -> Tensor:
            x = self.blocks(images * 2 - 1)
            return F.silu(self.cells(x.flatten(1)))

        def image_embedding(self, features: Tensor) -> Tensor:
            return F.normalize(self.image_projection(features), dim=-1)

        def text_embedding(self, ids: Tensor, starts: Tensor) -> Tensor:
            hidden = F.silu(self.text_hidden(self.words(ids, starts)))
            return F.normalize(self.text_projection(hidden), dim=-1)

    return Towers()


def load_encoder(folder: Path = FOLDER, device: str = "cpu") -> Encoder:
    """The encoder in ``folder``, by default the one that comes with the package. Raises Unavailable."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / FILES[0]).read_text(encoding="utf-8"))
        sizes: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
        shape = Shape(**sizes)
        towers = make_towers(shape)
        weights = load_file(folder / FILES[1])
        towers.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise Unavailable(
            f"the image–text encoder in '{folder}' cannot be loaded: {one_line(error)}"
        ) from error
    with torch.no_grad():
        return Encoder(shape, towers, device)


def save_encoder(shape: Shape, towers: Any, folder: Path) -> None:
    """Write the configuration and half-precision weights that `load_encoder` reads."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    words = asdict(shape) | {"words": list(shape.words)}
    (folder / FILES[0]).write_text(json.dumps(words, indent=1) + "\n", encoding="utf-8")
    state = {k: v.half() if v.is_floating_point() else v for k, v in towers.state_dict().items()}
    save_file({k: v.contiguous() for k, v in state.items()}, folder / FILES[1])


def encoder_sha256(folder: Path = FOLDER) -> str:
    """Hash of what `load_encoder` reads. Raises Unavailable if there is nothing."""
    digest = hashlib.sha256()
    try:
        for name in FILES:
            digest.update(name.encode() + b"\0" + (folder / name).read_bytes())
    except OSError as error:
        raise Unavailable(f"the image–text encoder in '{folder}' is missing: {error.strerror}") from error
    return digest.hexdigest()
