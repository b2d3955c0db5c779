"""The order of collection: every prompt under every arm, and no arm favoured by its place."""

from collections import Counter

from draftpick.policy_training.data.collect import pinned_tasks
from draftpick.policy_training.workloads import Prompt

ARMS = ("plain", "ngram", "suffix", "math")
PROMPTS = [Prompt(f"chat-{i}", "chat", f"Tell me about city {i}.") for i in range(10)]


def test_every_prompt_comes_once_under_every_arm_and_prompts_in_order() -> None:
    tasks = pinned_tasks(PROMPTS, ARMS, seed=0)
    assert Counter((t.prompt.id, t.arm) for t in tasks) == Counter((p.id, arm) for p in PROMPTS for arm in ARMS)
    assert [t.prompt for t in tasks[::4]] == PROMPTS
    assert all(t.label == t.arm for t in tasks)


def test_the_arms_of_a_prompt_come_in_a_random_order_that_the_seed_repeats() -> None:
    tasks = pinned_tasks(PROMPTS, ARMS, seed=0)
    orders = {tuple(t.arm for t in tasks[i : i + 4]) for i in range(0, len(tasks), 4)}
    assert len(orders) > 4
    assert pinned_tasks(PROMPTS, ARMS, seed=0) == tasks
    assert pinned_tasks(PROMPTS, ARMS, seed=1) != tasks


def test_no_arm_comes_first_too_often() -> None:
    many = [Prompt(str(i), "chat", "Hi") for i in range(400)]
    first = Counter(t.arm for t in pinned_tasks(many, ARMS, seed=0)[::4])
    assert all(70 < count < 130 for count in first.values())
