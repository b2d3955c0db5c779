"""Acceptance of a drafter on a known answer."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class DrafterReplay:
    """Decoding steps of one answer: drafted and accepted tokens per step, without the first token (prefill)."""

    drafted: npt.NDArray[np.int64]
    accepted: npt.NDArray[np.int64]

    @property
    def acceptance_length(self) -> float:
        """tau: tokens per decoding step; 1 for an answer without a decoding step."""
        return 1.0 + float(self.accepted.mean()) if len(self.accepted) else 1.0

    @property
    def acceptance_rate(self) -> float:
        """Accepted / drafted tokens; 0 if nothing was drafted."""
        return float(self.accepted.sum() / max(self.drafted.sum(), 1))
