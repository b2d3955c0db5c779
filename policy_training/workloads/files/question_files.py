"""Question files of benchmarks of speculative decoding: `question_id`, `category`, `turns`.

MT-bench and Spec-Bench (https://github.com/hemingkx/Spec-Bench) are JSON lines; SPEED-Bench
(https://huggingface.co/datasets/nvidia/SPEED-Bench) is Parquet and also names `sub_category` and `source`. Only the
first turn is a prompt: the turns after it need the target's answer before them.
"""

from draftpick.policy_training.workloads.files.conversation import Unusable
from draftpick.policy_training.workloads.files.formats import Fields, Format, required

_UNRESOLVED = "FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE"
"""Beginning of a turn that SPEED-Bench leaves to its own script."""


def _convert(row: Fields) -> Fields:
    turns = required(row, "turns", list, "a question file")
    if not turns or not isinstance(turns[0], str):
        raise ValueError(f"'turns' must be a list of strings, the user's turns, found {turns!r:.80}")
    if turns[0].startswith(_UNRESOLVED):
        raise Unusable("text left to SPEED-Bench's own script")
    kept: Fields = {name: row[name] for name in ("source", "language", "split") if row.get(name)}
    messages = [{"role": "user", "content": turns[0]}]
    return {**kept, "id": row.get("question_id"), "kind": row.get("category"), "messages": messages}


SPEED_BENCH = Format("SPEED-Bench questions", lambda row: "turns" in row and "sub_category" in row, _convert)
SPEC_BENCH = Format("Spec-Bench questions", lambda row: "turns" in row, _convert)
