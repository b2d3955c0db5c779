"""What a drafter would have accepted of a known answer."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class DrafterReplay:
    """Decoding steps of one answer: tokens drafted and tokens accepted in each, the first token (prefill) left out."""

    drafted: npt.NDArray[np.int64]
    accepted: npt.NDArray[np.int64]

    @property
    def acceptance_length(self) -> float:
        """tau: tokens per decoding step, 1 for an answer without a decoding step."""
        return 1.0 + float(self.accepted.mean()) if len(self.accepted) else 1.0

    @property
    def acceptance_rate(self) -> float:
        """Accepted / drafted tokens, 0 when nothing was drafted."""
        return float(self.accepted.sum() / max(self.drafted.sum(), 1))
