"""The drafter of docs/extending.md."""

import numpy as np

from draftpick.engines.config import Drafter
from draftpick.engines.drafters.replay import LENGTHS, replayer

ECHO = Drafter.model_validate({"method": "echo", "num_speculative_tokens": 4, "period": 8})
ROWS = np.tile(np.arange(100, 108, dtype=np.int32), 6)


def test_text_with_its_period_is_predicted() -> None:
    replays = replayer(ECHO, LENGTHS, target="")(ROWS[:8], ROWS[8:])
    assert replays[1].acceptance_length > 1.9
    assert replays[4].acceptance_length > 4.5


def test_other_text_gets_a_token_a_step() -> None:
    other = np.arange(100, 140, dtype=np.int32)
    assert replayer(ECHO, [4], target="")(ROWS[:3], other)[4].acceptance_length == 1.0
