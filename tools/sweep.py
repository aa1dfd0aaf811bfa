"""Every causal architecture of the library against an independent oracle; docs/reference/architectures.md.

python tools/sweep.py [ARCHITECTURE …] [--write]
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers.sweep.run import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
