"""The fakes of this folder, by import name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
