"""Contexts of datasets: made as the router makes them, and made anew where featurizers have changed."""

from pathlib import Path

import numpy as np

from draftpick.policy_training.data.contexts import contexts, refresh_contexts
from draftpick.policy_training.data.dataset import Measurement, load, save
from draftpick.policy_training.workloads import generate
from draftpick.router.features.featurizer import LexicalFeaturizer
from draftpick.router.types import Outcome

PROMPTS = generate(6, seed=1, sampled_share=0.5, max_tokens=32)
OLD, NEW = LexicalFeaturizer(32), LexicalFeaturizer(64)


def test_new_features_need_no_new_measurements(tmp_path: Path) -> None:
    measured = [Measurement.from_prompt(p, "plain", "plain", Outcome("ok", output_tokens=9)) for p in PROMPTS]
    save(tmp_path / "one.parquet", measured[:3], contexts([OLD], PROMPTS[:3]))
    save(tmp_path / "two.parquet", measured[3:], contexts([OLD, NEW], PROMPTS[3:]))
    # The measured temperatures count, not those that the prompts have by now.
    asked = generate(6, seed=1, sampled_share=0.0, max_tokens=64)
    assert refresh_contexts(tmp_path, asked, [NEW]) == 3
    found = load(tmp_path)
    assert list(found.measurements) == measured
    expected = contexts([NEW], PROMPTS)
    for prompt in PROMPTS:
        assert np.array_equal(found.contexts[prompt.id][NEW.id], expected[prompt.id][NEW.id])
    assert found.contexts[PROMPTS[0].id].keys() == {NEW.id}
    assert refresh_contexts(tmp_path, asked, [NEW]) == 0


def test_a_text_that_is_not_known_keeps_its_contexts(tmp_path: Path) -> None:
    measured = [Measurement.from_prompt(PROMPTS[0], "plain", "plain", Outcome("ok", output_tokens=9))]
    save(tmp_path / "one.parquet", measured, contexts([OLD], PROMPTS[:1]))
    assert refresh_contexts(tmp_path, PROMPTS[1:], [NEW]) == 0
    assert load(tmp_path).featurizers == [OLD.id]


def test_a_folder_that_is_not_there_has_nothing_to_renew(tmp_path: Path) -> None:
    assert refresh_contexts(tmp_path / "none", PROMPTS, [NEW]) == 0
