"""Requests to summarise a passage of the standard library's own documentation."""

from random import Random

from policy_training.workloads.library import passage
from policy_training.workloads.vocabulary import JOBS

_REQUESTS = (
    "Summarise the text below in {n} sentences.",
    "Summarise this for a {job} who has never programmed, in {n} sentences.",
    "Write a summary of at most {words} words.",
    "What are the {n} main points of this passage?",
    "Give the key ideas of the text as {n} bullet points.",
    "Shorten this passage to about {words} words and keep the technical terms.",
    "Write a title and a summary of {n} sentences for this text.",
    "Explain in {n} sentences what this documentation says.",
    "Rewrite the text as a short note of {words} words for a colleague.",
    "TL;DR in no more than {words} words, please.",
    "Summarise the passage, then name {n} terms that a beginner should look up.",
    "Which {n} facts in this passage matter most? Answer briefly.",
)
_LAYOUTS = (
    "{request}\n\n{text}",
    "{text}\n\n{request}",
    "{request}\n\nText:\n{text}\n\nSummary:",
    "{text}\n\n{request}",
)


def draw(rng: Random) -> str:
    """One passage of 80 to 220 words and a request to summarise it."""
    request = rng.choice(_REQUESTS).format(n=rng.randint(2, 5), words=rng.randrange(20, 80, 10), job=rng.choice(JOBS))
    return rng.choice(_LAYOUTS).format(request=request, text=passage(rng, 80, 220))
