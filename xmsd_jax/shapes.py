"""The dimension key, and aliases for the arrays that most modules pass around.

b batch; t generated position; s prompt position; g draft length; d width; v vocabulary; k top-k; h heads; e events;
f frames; y x pixels. Names say whose an array is (`drafter_hidden`, `target_hidden`); `*_ids` are int32 token ids,
`*_mask` is True where a value is kept, `*_len` counts positions, `*_us` are microseconds.
"""

import numpy as np
from jaxtyping import Int32, Int64, UInt8

Image = UInt8[np.ndarray, "y x 3"]
"""One RGB picture."""

Video = UInt8[np.ndarray, "f y x 3"]
"""RGB frames in time order."""

TokenIds = Int32[np.ndarray, " t"]
"""Token ids of one answer or draft."""

TimesUs = Int64[np.ndarray, " f"]
"""Times in microseconds, non-decreasing."""
