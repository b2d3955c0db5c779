"""The feature of docs/extending.md: in every vector, with its own label and weight."""

import math

import numpy as np
import pytest

from draftpick.policy_training.learners.base import FeatureScaling
from draftpick.router.features.featurizer import LexicalFeaturizer
from draftpick.router.features.lexical import FEATURES, TABLE, lexical_features
from draftpick.router.monitoring.cluster_labels import cluster_names
from draftpick.router.openai_request import Request
from draftpick.router.policies.neighbourhood import Clusters

AT = FEATURES.index("log_lines")


@pytest.mark.parametrize(("text", "lines"), [("", 0), ("one", 0), ("one\ntwo\nthree", 2)])
async def test_lines_count_on_a_logarithmic_scale(text: str, lines: int) -> None:
    request = Request("/v1/chat/completions", b"", text)
    assert lexical_features(request)[AT] == pytest.approx(math.log1p(lines) / 5)
    featurizer = LexicalFeaturizer(8)
    assert featurizer.id.endswith("lexical-v4")
    assert (await featurizer(request)).vector[8 + AT] == pytest.approx(math.log1p(lines) / 5)


def test_clusters_are_named_by_it_and_learners_weigh_it() -> None:
    centres = np.zeros((2, len(TABLE)), np.float32)
    centres[1, AT] = 1.0
    names = cluster_names(Clusters(centres, np.square(centres).sum(1), [1.0, 1.0]))
    assert names[:2] == ["one line", "many lines"]
    contexts = np.random.default_rng(0).normal(size=(50, len(TABLE))).astype(np.float32)
    contexts[:, AT] = contexts[:, 0]
    scale = FeatureScaling.from_contexts(contexts).scale
    assert scale[AT] == pytest.approx(scale[0] / 0.5)
