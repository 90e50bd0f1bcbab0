"""What tests of machines share lies beside them."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # pytest imports a test file by its path, and so not its neighbours
