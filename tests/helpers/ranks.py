"""Two processes of one training, as a launcher would start them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor


def two_ranks(script: str, folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Run ``script`` as ranks 0 and 1 over gloo; the tensors that each left in ``folder/RANK.safetensors``.

    In the script ``{tests}`` and ``{folder}`` stand for this folder and the other one.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    code = textwrap.dedent(script).format(tests=str(Path(__file__).parents[1]), folder=str(folder))
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=500) for process in processes] == [0, 0]
    first, second = (load_file(folder / f"{rank}.safetensors") for rank in range(2))
    return first, second
