"""Programming tasks: functions to write from a description, and questions on real functions of the standard library."""

from random import Random

from policy_training.workloads import number_exercises, text_exercises
from policy_training.workloads.exercises import Exercise
from policy_training.workloads.library import functions

_WRITE = (
    "Complete this Python function.\n\n```python\n{stub}\n```",
    "Finish the body of this function. Answer with code only.\n\n```python\n{stub}\n```",
    "Write the Python function `{signature}`. {doc}\n\nExamples:\n{examples}",
    "Implement `{signature}` in Python without any import. {doc}\n\n```\n{examples}\n```",
    "Write a Python function and three tests for it.\n\n{signature}\n{doc}\n\nExamples:\n{examples}",
    "```python\n{stub}\n```\n\nFill in the code and explain in one sentence how it works.",
    "{doc}\nWrite this as a Python function `{signature}`. It must pass:\n\n{examples}",
)
_ASK = (
    "Explain this function line by line.",
    "Explain in plain words what this function does.",
    "Add type hints to this function and return the full code.",
    "Write a docstring for this function in the Google style.",
    "Write three pytest tests for this function.",
    "Add a comment to every step of this function.",
    "Which inputs could make this function fail? List them.",
    "Rewrite this function with clearer variable names.",
    "What does this function return, and what are its side effects?",
    "Review this function and suggest two improvements.",
    "Translate this function to JavaScript.",
    "Simplify this function without changing what it does.",
)
_FAMILIES = (*number_exercises.FAMILIES, *text_exercises.FAMILIES)
_WRITE_SHARE = 0.6


def draw(rng: Random) -> str:
    """One task; three of five ask for a new function."""
    return _write(rng.choice(_FAMILIES)(rng), rng) if rng.random() < _WRITE_SHARE else _ask(rng)


def _write(task: Exercise, rng: Random) -> str:
    return rng.choice(_WRITE).format(
        stub=task.stub, signature=task.signature, doc=task.doc, examples="\n".join(task.examples)
    )


def _ask(rng: Random) -> str:
    question, function = rng.choice(_ASK), rng.choice(functions())
    code = f"```python\n{function.source}\n```"
    where = rng.choice(("", f" It is `{function.name}` from the module `{function.module}`."))
    return rng.choice((f"{question}{where}\n\n{code}", f"{code}\n\n{question}{where}"))
