"""Training: what is refused and why, and an artefact that serves the decisions that were trained."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import orjson
import pytest

from policy_training.dataset import DatasetError, Matrix, Measurement
from policy_training.learners import TrainOptions, train
from policy_training.train import as_request, choices, dataset, train_policy
from policy_training.workloads import Prompt
from router.features import Featurizer, LexicalFeaturizer
from router.openai import parse
from router.policies import read
from router.policies.mlp import MLPPolicy
from router.types import Outcome

pytestmark = pytest.mark.usefixtures("one_thread")

ARMS = ("plain", "ngram", "math")
FEATURIZER = LexicalFeaturizer()
OPTIONS = TrainOptions(epochs=150)
TEXTS = {
    "edit": "Rewrite the paragraph and keep every word of section {}.",
    "math": "What is {} times twelve, divided by three?",
    "chat": "Tell me a story about city {}.",
}
TPOT_S = {
    "edit": {"plain": 0.10, "ngram": 0.04, "math": 0.12},
    "math": {"plain": 0.10, "ngram": 0.11, "math": 0.05},
    "chat": {"plain": 0.10, "ngram": 0.13, "math": 0.14},
}
FASTEST = {"edit": "ngram", "math": "math", "chat": "plain"}
PROMPTS = {f"{kind}-{i}": Prompt(f"{kind}-{i}", kind, TEXTS[kind].format(i)) for i in range(12) for kind in TEXTS}


def measured(prompts: Iterable[Prompt] = PROMPTS.values()) -> list[Measurement]:
    outcomes = {
        (kind, arm): Outcome("ok", 200, 0.1, s, output_tokens=11) for kind in TPOT_S for arm, s in TPOT_S[kind].items()
    }
    return [Measurement.of(p, arm, arm, outcomes[p.kind, arm]) for p in prompts for arm in ARMS]


def data(prompts: int = len(PROMPTS), arms: tuple[str, ...] = ARMS) -> Matrix:
    return dataset(measured(list(PROMPTS.values())[:prompts]), PROMPTS, arms, FEATURIZER)


def trained(out: Path, found: Matrix | None = None, options: TrainOptions = OPTIONS, default: str = "plain") -> None:
    train_policy(data() if found is None else found, FEATURIZER.id, default, out, options, {"source": "a test"})


def test_dataset_has_the_contexts_of_its_prompts() -> None:
    found = data()
    assert found.prompt_ids == tuple(PROMPTS)
    assert found.contexts is not None
    assert found.contexts.shape == (36, FEATURIZER.dimension)
    assert found.contexts.dtype == np.float32


async def test_a_context_is_the_one_that_the_router_makes() -> None:
    prompt = Prompt("chat-0", "chat", "Tell me a story.\n" * 20, 0.7, 64)
    await agree(prompt, FEATURIZER)


async def test_a_context_of_a_long_prompt_is_the_one_that_the_router_makes() -> None:
    await agree(Prompt("chat-0", "chat", "Tell me a story.\n" * 400, 0.7, 64), FEATURIZER)


async def agree(prompt: Prompt, featurizer: Featurizer) -> None:
    """Assert that training and serving give a prompt the same context."""
    sampling = {"temperature": prompt.temperature, "max_tokens": prompt.max_tokens}
    body = {"model": "target", "messages": [{"role": "user", "content": prompt.text}], **sampling}
    served = await featurizer(parse("/v1/chat/completions", orjson.dumps(body)))
    offline = await featurizer(as_request(prompt))
    assert served.featurizer == offline.featurizer
    assert served.vector.tolist() == offline.vector.tolist()


def test_an_unknown_prompt_is_named() -> None:
    known = {i: prompt for i, prompt in PROMPTS.items() if i != "math-3"}
    with pytest.raises(DatasetError, match=r"prompt 'math-3' was measured and is not among the prompts \(same seed"):
        dataset(measured(), known, ARMS, FEATURIZER)


@pytest.mark.parametrize("learner", ["exact", "reinforce"])
def test_the_artefact_decides_as_trained(tmp_path: Path, learner: Literal["exact", "reinforce"]) -> None:
    options, found = TrainOptions(learner=learner, epochs=150), data()
    trained(tmp_path / "policy", found, options)
    assert found.contexts is not None
    fitted = MLPPolicy("fitted", ARMS, FEATURIZER.id, train(found.contexts, found.time_s, 0, options))
    shares = choices(read(tmp_path / "policy"), found, FEATURIZER.id)
    assert shares.sum(1).tolist() == [1.0] * 36
    assert (shares == choices(fitted, found, FEATURIZER.id)).all()


def test_the_artefact_sends_each_kind_to_its_fastest_arm(tmp_path: Path) -> None:
    trained(tmp_path / "policy")
    found = data()
    chosen = choices(read(tmp_path / "policy"), found, FEATURIZER.id).argmax(1)
    right = [ARMS[arm] == FASTEST[kind] for arm, kind in zip(chosen, found.kinds, strict=True)]
    assert sum(right) >= 33


def test_training_repeats(tmp_path: Path) -> None:
    for name in ("one", "same"):
        trained(tmp_path / name)
    one, same = ((tmp_path / name / "arrays.safetensors").read_bytes() for name in ("one", "same"))
    assert one == same


def test_the_manifest_tells_where_the_policy_comes_from_and_no_text(tmp_path: Path) -> None:
    found = replace(data(), dropped={"missing:math": 2})
    trained(tmp_path / "policy", found)
    text = (tmp_path / "policy" / "manifest.json").read_text()
    manifest = json.loads(text)
    assert manifest["kind"] == "mlp"
    assert manifest["arms"] == list(ARMS)
    assert manifest["featurizer"] == FEATURIZER.id
    provenance = manifest["provenance"]
    assert provenance["prompts"] == 36
    assert provenance["kinds"] == ["chat", "edit", "math"]
    assert provenance["dropped"] == {"missing:math": 2}
    assert provenance["train_options"]["epochs"] == 150
    assert provenance["source"] == "a test"
    assert not any(word in text for word in ("Rewrite", "divided", "story"))


def test_a_new_artefact_replaces_the_old_one(tmp_path: Path) -> None:
    for seed in (0, 1):
        trained(tmp_path / "policy", options=TrainOptions(epochs=2, seed=seed))
    manifest = json.loads((tmp_path / "policy" / "manifest.json").read_text())
    assert manifest["provenance"]["train_options"]["seed"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_progress_is_told(tmp_path: Path) -> None:
    epochs: list[int] = []
    options = TrainOptions(epochs=3)
    train_policy(data(), FEATURIZER.id, "plain", tmp_path / "policy", options, {}, lambda i, *_: epochs.append(i))
    assert epochs == [1, 2, 3]


def refused(found: Matrix, folder: Path, problem: str) -> None:
    with pytest.raises(DatasetError, match=problem):
        trained(folder / "policy", found)
    assert list(folder.iterdir()) == []


def test_too_few_prompts(tmp_path: Path) -> None:
    few = replace(data(prompts=9), dropped={"timeout:math": 4})
    refused(few, tmp_path, r"^9 usable prompts under 3 arms .* at least 10 prompts .*dropped: {'timeout:math': 4}")


def test_one_arm(tmp_path: Path) -> None:
    refused(data(arms=("plain",)), tmp_path, "36 usable prompts under 1 arms are too few: .* under 2 arms are needed")


def test_no_contexts(tmp_path: Path) -> None:
    refused(replace(data(), contexts=None), tmp_path, "no contexts")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("field", ["time_s", "contexts"])
def test_values_that_are_not_finite(tmp_path: Path, field: str, value: float) -> None:
    found = data()
    damaged = getattr(found, field).copy()
    damaged[3, 1] = value
    refused(replace(found, **{field: damaged}), tmp_path, "not finite")


def test_an_unknown_default_engine(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"'plane'.*plain"):
        trained(tmp_path / "policy", default="plane")


def test_choices_come_in_the_order_of_the_data(tmp_path: Path) -> None:
    trained(tmp_path / "policy")
    policy = read(tmp_path / "policy")
    turned = data(arms=ARMS[::-1])
    assert (choices(policy, turned, FEATURIZER.id) == choices(policy, data(), FEATURIZER.id)[:, ::-1]).all()


def test_choices_of_a_policy_with_other_arms_are_refused(tmp_path: Path) -> None:
    trained(tmp_path / "policy")
    with pytest.raises(DatasetError, match=r"the policy has the arms \['plain', 'ngram', 'math'\], the data"):
        choices(read(tmp_path / "policy"), data(arms=ARMS[:2]), FEATURIZER.id)


def test_choices_need_contexts(tmp_path: Path) -> None:
    trained(tmp_path / "policy", options=TrainOptions(epochs=1))
    with pytest.raises(DatasetError, match="no contexts"):
        choices(read(tmp_path / "policy"), replace(data(), contexts=None), FEATURIZER.id)


def test_the_artefact_is_an_mlp_of_the_featurizer(tmp_path: Path) -> None:
    trained(tmp_path / "policy", options=TrainOptions(epochs=1))
    policy = read(tmp_path / "policy")
    assert isinstance(policy, MLPPolicy)
    assert (policy.arms, policy.featurizer, policy.dimension) == (ARMS, FEATURIZER.id, FEATURIZER.dimension)
