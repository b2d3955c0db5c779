"""Training: what is refused and why, and an artefact that serves the decisions that were trained."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest

from draftpick.policy_training.data.contexts import contexts, request_from_prompt
from draftpick.policy_training.data.dataset import DatasetError
from draftpick.policy_training.data.matrix import Matrix
from draftpick.policy_training.learners import LEARNERS, learner
from draftpick.policy_training.train import fitted, policy_probabilities, train_policy
from draftpick.policy_training.workloads import Message, Prompt
from draftpick.router.features.featurizer import Featurizer, LexicalFeaturizer
from draftpick.router.openai_request import parse
from draftpick.router.policies import read
from tests.policy_training.bandit import ARMS, SETTING, Bandit

FEATURIZER = LexicalFeaturizer()
BANDIT = Bandit.draw(60, seed=0)


def trained(out: Path, data: Matrix | None = None, name: str = "ridge", **setting: object) -> None:
    found = BANDIT.matrix() if data is None else data
    train_policy(found, learner(name), replace(SETTING, **setting), out, {"source": "a test"})  # type: ignore[arg-type]


def test_contexts_by_prompt_and_featurizer() -> None:
    prompts = [Prompt(f"p{i}", "chat", f"Tell me of {i}.") for i in range(3)]
    found = contexts([FEATURIZER], prompts)
    assert list(found) == ["p0", "p1", "p2"]
    assert found["p1"][FEATURIZER.id].shape == (FEATURIZER.dimension,)


@pytest.mark.parametrize("text", ["Tell me a story.\n" * 20, "Tell me a story.\n" * 400, "Write JSON: {}"])
async def test_a_context_is_the_one_that_the_router_makes(text: str) -> None:
    await agree(Prompt("chat-0", "chat", text, 0.7, 64), FEATURIZER)
    history = (Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "What can I do?"))
    await agree(Prompt("chat-0", "chat", text, 0.7, 64, history=history), FEATURIZER)


async def agree(prompt: Prompt, featurizer: Featurizer) -> None:
    """Assert that training and serving give a prompt the same context."""
    sampling = {"temperature": prompt.temperature, "max_tokens": prompt.max_tokens}
    body = {"model": "target", "messages": prompt.messages, **sampling}
    served = await featurizer(parse("/v1/chat/completions", orjson.dumps(body)))
    offline = await featurizer(request_from_prompt(prompt))
    assert served.featurizer == offline.featurizer
    assert served.vector.tolist() == offline.vector.tolist()


@pytest.mark.parametrize("name", LEARNERS)
def test_the_artefact_decides_as_trained(tmp_path: Path, name: str) -> None:
    data = BANDIT.matrix()
    trained(tmp_path / "policy", data, name)
    shares = policy_probabilities(read(tmp_path / "policy"), data)
    np.testing.assert_allclose(shares.sum(1), 1.0)
    assert (shares == policy_probabilities(fitted(data, learner(name), SETTING), data)).all()


def test_the_manifest_tells_where_the_policy_comes_from(tmp_path: Path) -> None:
    trained(tmp_path / "policy", replace(BANDIT.matrix(), dropped={"missing:math": 2}))
    manifest = json.loads((tmp_path / "policy" / "manifest.json").read_text())
    assert manifest["kind"] == "tau_cost"
    assert manifest["arms"] == list(ARMS)
    assert manifest["featurizer"] == "features"
    provenance = manifest["provenance"]
    assert provenance["learner"] == "RidgeRegression"
    assert provenance["requests"] == 60
    assert provenance["tasks"] == [f"cluster-{i}" for i in range(4)]
    assert provenance["dropped"] == {"missing:math": 2}
    assert provenance["costs"]["arms"] == list(ARMS)
    assert provenance["source"] == "a test"


def test_a_new_artefact_replaces_the_old_one(tmp_path: Path) -> None:
    for seed in (0, 1):
        trained(tmp_path / "policy", seed=seed)
    manifest = json.loads((tmp_path / "policy" / "manifest.json").read_text())
    assert manifest["provenance"]["seed"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def refused(found: Matrix, folder: Path, problem: str) -> None:
    with pytest.raises(DatasetError, match=problem):
        trained(folder / "policy", found)
    assert list(folder.iterdir()) == []


def test_ten_requests_are_too_few(tmp_path: Path) -> None:
    few = replace(BANDIT.matrix().select_rows(np.arange(10)), dropped={"timeout:math": 4})
    refused(few, tmp_path, r"^10 usable requests under 4 arms .* at least 16 requests .*dropped: {'timeout:math': 4}")


def test_one_arm(tmp_path: Path) -> None:
    data = BANDIT.matrix()
    one = replace(data, arms=("plain",), time_s=data.time_s[:, :1], acceptance_length=data.acceptance_length[:, :1])
    refused(one, tmp_path, "60 usable requests under 1 arms are too few: .* under 2 arms are needed")


def test_no_contexts(tmp_path: Path) -> None:
    refused(replace(BANDIT.matrix(), contexts=None), tmp_path, "no contexts")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("field", ["time_s", "contexts"])
def test_values_that_are_not_finite(tmp_path: Path, field: str, value: float) -> None:
    data = BANDIT.matrix()
    damaged = getattr(data, field).copy()
    damaged[3, 1] = value
    refused(replace(data, **{field: damaged}), tmp_path, "must be finite")


def test_an_unknown_default_engine(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"'plane'.*plain"):
        trained(tmp_path / "policy", default="plane")


def test_choices_come_in_the_order_of_the_data() -> None:
    data = BANDIT.matrix()
    policy = fitted(data, learner("ridge"), SETTING)
    turned = replace(data, arms=ARMS[::-1], time_s=data.time_s[:, ::-1])
    assert (policy_probabilities(policy, turned) == policy_probabilities(policy, data)[:, ::-1]).all()


def test_choices_of_a_policy_with_other_arms_or_features_are_refused() -> None:
    data = BANDIT.matrix()
    policy = fitted(data, learner("ridge"), SETTING)
    with pytest.raises(DatasetError, match=r"the policy has the arms \['plain'"):
        policy_probabilities(policy, replace(data, arms=("plain", "ngram", "suffix", "other")))
    with pytest.raises(DatasetError, match="needs contexts of 'features', the data has 'others'"):
        policy_probabilities(policy, replace(data, featurizer="others"))
