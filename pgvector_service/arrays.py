"""The arrays that travel through the service, by name."""

import numpy as np
from numpy.typing import NDArray

# One embedding a row.
Rows = NDArray[np.float32]
# What stands for a row: `key` in vector_documents.
Keys = NDArray[np.int64]
# Places in another array.
Positions = NDArray[np.int64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
