"""Copy-and-edit tasks: real code, real prose or records, to be repeated with one change."""

import json
import re
from random import Random

from policy_training.workloads.library import functions, passage
from policy_training.workloads.vocabulary import CITIES, JOBS, WEEKDAYS, date, iso_date, listed, person

_ONLY = (
    "Change nothing else.",
    "Keep everything else as it is.",
    "Repeat the whole text with this one change.",
    "Answer with the full result only.",
    "Return the complete edited text and no explanation.",
)
_NEW_NAMES = listed(
    "amount argument base buffer_size candidate content current_item data_in default_value element entity "
    "entry_point given_value handle_in identifier incoming index_value initial input_value item_in label_text "
    "limit_value location marker member_name new_value node_in number_in object_in operand origin outcome "
    "parent_item payload pointer position provided quantity raw_value reference resource result_in selected setting "
    "source_in stage subject supplied target_in unit_in user_value working_copy"
)
_NEW_WORDS = listed("article device element entity feature gadget portion segment structure symbol thing widget")
_NEW_FIELDS = (
    *(("status", s) for s in ("active", "pending", "archived", "new", "closed")),
    *(("priority", p) for p in (1, 2, 3, 5)),
    *(("verified", v) for v in (True, False)),
    *(("country", c) for c in ("Portugal", "Norway", "Japan", "Peru", "Kenya", "Canada")),
    *(("level", s) for s in ("junior", "senior", "lead")),
)


def draw(rng: Random) -> str:
    """One text and one change to make to it."""
    return rng.choice(_EDITS)(rng)


def _task(rng: Random, change: str, text: str, fence: str = "") -> str:
    """Instruction and text, in one of two orders; `fence` is the language of a code block."""
    block = f"```{fence}\n{text}\n```" if fence else text
    request = f"{change} {rng.choice(_ONLY)}"
    return rng.choice((f"{request}\n\n{block}", f"{block}\n\n{request}"))


def _rename_parameter(rng: Random) -> str:
    function = rng.choice([f for f in functions() if f.parameters])
    old = rng.choice(function.parameters)
    new = rng.choice([name for name in _NEW_NAMES if name not in function.source])
    return _task(rng, f"Rename the parameter `{old}` to `{new}` everywhere in this code.", function.source, "python")


def _rename_function(rng: Random) -> str:
    function = rng.choice([f for f in functions() if not f.name.startswith("__")])
    new = rng.choice([name for name in _NEW_NAMES if name not in function.source])
    return _task(rng, f"Rename the function `{function.name}` to `{new}`.", function.source, "python")


def _comment(rng: Random) -> str:
    function = rng.choice(functions())
    change = f"Add the comment `# Reviewed by {person(rng)} on {iso_date(rng)}` as the first line of this code."
    return _task(rng, change, function.source, "python")


def _date(rng: Random) -> str:
    old, new = date(rng), date(rng)
    text = (
        f"Last reviewed: {old}\nReviewer: {person(rng)}\n\n{passage(rng, 40, 120)}\n\nNext review one year after {old}."
    )
    return _task(rng, f"Change the date {old} to {new} wherever it stands.", text)


def _spelling(rng: Random) -> str:
    return _task(rng, "Fix the spelling mistakes in this text.", _misspelt(passage(rng, 50, 130), rng))


def _misspelt(text: str, rng: Random) -> str:
    """The text with two neighbouring letters swapped inside three to six of its words."""
    places = [m.start() + rng.randint(1, len(m[0]) - 3) for m in re.finditer(r"\b[a-z]{5,}\b", text)]
    places = [i for i in places if text[i] != text[i + 1]]
    for i in rng.sample(places, min(len(places), rng.randint(3, 6))):
        text = text[:i] + text[i + 1] + text[i] + text[i + 2 :]
    return text


def _replace_word(rng: Random) -> str:
    text = passage(rng, 50, 150)
    old, new = _frequent_word(text, rng), rng.choice(_NEW_WORDS)
    return _task(rng, f'Replace every "{old}" in the text with "{new}".', text)


def _upper_word(rng: Random) -> str:
    text = passage(rng, 50, 150)
    return _task(rng, f'Write the word "{_frequent_word(text, rng)}" in capital letters wherever it stands.', text)


def _frequent_word(text: str, rng: Random) -> str:
    """One of the five longer words that the text uses most."""
    words = re.findall(r"\b[a-z]{5,}\b", text)
    by_count: list[str] = sorted(dict.fromkeys(words), key=words.count, reverse=True)
    return rng.choice(by_count[:5])


def _upper_names(rng: Random) -> str:
    people = [f"{person(rng)}, {rng.choice(JOBS)}, {rng.choice(CITIES)}" for _ in range(rng.randint(4, 10))]
    text = f"Meeting of {rng.choice(WEEKDAYS)}, {date(rng)}\nPresent:\n" + "\n".join(f"- {p}" for p in people)
    return _task(rng, "Convert the people's names to upper case.", text)


def _last_sentence(rng: Random) -> str:
    which = rng.choice(("first", "last"))
    return _task(rng, f"Repeat this text without its {which} sentence.", passage(rng, 50, 150))


def _add_field(rng: Random) -> str:
    name, value = rng.choice(_NEW_FIELDS)
    change = f"Add the field {json.dumps(name)} with the value {json.dumps(value)} to every record."
    return _task(rng, change, json.dumps(_records(rng), indent=rng.choice((None, 2))), "json")


def _change_field(rng: Random) -> str:
    records, city = _records(rng), rng.choice(CITIES)
    change = f"Change the city of {rng.choice(records)['name']} to {city}."
    return _task(rng, change, json.dumps(records, indent=rng.choice((None, 2))), "json")


def _records(rng: Random) -> list[dict[str, str | int]]:
    """Three to six people as records."""
    return [
        {"id": rng.randint(100, 999), "name": person(rng), "job": rng.choice(JOBS), "city": rng.choice(CITIES)}
        for _ in range(rng.randint(3, 6))
    ]


_EDITS = (
    *(_rename_parameter, _rename_function, _comment, _date, _spelling, _replace_word),
    *(_upper_word, _upper_names, _last_sentence, _add_field, _change_field),
)
