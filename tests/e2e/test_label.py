"""Labels of the real target under real drafters: no engine runs, and a second run goes on where the first one ended."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from draftpick.policy_training.data.dataset import load
from draftpick.router.router import static_featurizer

pytestmark = pytest.mark.vllm

FLEET = {
    "target": {"name": "smollm2", "source": "embedded"},
    "engines": [
        {"name": "plain"},
        {
            "name": "suffix",
            "drafter": {
                "method": "suffix",
                "num_speculative_tokens": 8,
                "suffix_decoding_max_cached_requests": 0,
            },
        },
        {"name": "math", "drafter": {"method": "eagle3", "num_speculative_tokens": 4, "model": "embedded:math"}},
        {"name": "remote", "url": "http://127.0.0.1:9"},
    ],
    "router": {"policy": "uniform", "default_engine": "plain"},
}


def label(folder: Path, config: Path, n: int) -> dict[str, object]:
    options = ["-n", str(n), "--max-tokens", "12", "--answers", "2", "--standalone-tokens", "8", "--json"]
    run = subprocess.run(
        [sys.executable, "-m", "draftpick", "label", "--config", str(config), "--output-dir", str(folder), *options],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return dict(json.loads(run.stdout.splitlines()[-1]))


def test_labels_of_every_engine_that_can_be_replayed(tmp_path: Path) -> None:
    config, folder = tmp_path / "fleet.yaml", tmp_path / "labels"
    config.write_text(yaml.safe_dump(FLEET))
    assert label(folder, config, 4) == {
        "prompts": 4, "renewed": 0, "engines": ["plain", "suffix", "math"], "left_out": ["remote"], "out": str(folder),
    }  # fmt: skip
    assert label(folder, config, 6)["prompts"] == 2
    data = load(folder)
    assert data.arms == ["math", "plain", "suffix"]
    assert len({m.prompt_id for m in data.measurements}) == 6
    assert static_featurizer().id in data.featurizers
    for m in data.measurements:
        assert m.source == "replay"
        assert m.outcome.output_tokens
        assert (m.outcome.acceptance_length or 1.0) >= 1
        assert set(m.tau_by_length) == (set() if m.arm == "plain" else {1, 2, 3, 4, 6, 8})
        assert bool(m.alignment) == (m.arm != "plain" and m.temperature == 0)
    answers = Counter((m.prompt_id, m.arm, m.temperature > 0) for m in data.measurements)
    assert all(count == (2 if sampled else 1) for (_, _, sampled), count in answers.items())
