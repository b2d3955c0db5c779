"""Options that several commands share. One flag means one thing everywhere:

`--json` prints JSON, `--json-file` writes it; `--output` is a file, `--output-dir` a folder; `--records` is a folder or
URL of the router's records; `--data` a dataset; `--plot` an image file; `--seed` has one default.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

DEFAULT_SEED = 0

Config = Annotated[
    str, typer.Option("--config", "-c", help="A fleet that ships (embedded, pool, seven, mock), or a YAML file.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to standard output instead of text.")]
JsonFile = Annotated[Path | None, typer.Option("--json-file", help="Also write the figures as JSON to this file.")]
OutputDir = Annotated[Path, typer.Option("--output-dir", help="Folder to write to.")]
OutputFile = Annotated[Path, typer.Option("--output", help="File to write.")]
ResultsDir = Annotated[Path | None, typer.Option("--output-dir", help="Also write the figures as JSON to this folder.")]
Plot = Annotated[Path | None, typer.Option("--plot", help="Also write a plot to this file.")]

Url = Annotated[str, typer.Option("--url", help="Base URL of a running router.")]
Port = Annotated[int, typer.Option("--port", help="Port of the fleet that is started.")]
RayAddress = Annotated[
    str | None, typer.Option("--ray-address", help="Address of the Ray cluster; `auto`: the one on this machine.")
]

_SPELLING = "FILE[:kind][@n], e.g. chats.jsonl:math@500, or `generated`; repeatable"
Prompts = Annotated[
    list[str], typer.Option("--prompts", help=f"{_SPELLING}; default: generated prompts.", show_default=False)
]
PromptSources = Annotated[list[str], typer.Option("--prompts", help=f"{_SPELLING}.")]
OneSplit = Annotated[
    Literal["train", "dev", "transfer"] | None,
    typer.Option("--split", help="Only prompts of this split: `split` in the file, else by source; default: all."),
]
OnOverlap = Annotated[
    Literal["fail", "drop", "allow"],
    typer.Option("--overlap", help="With --split: what to do if a split shares texts with train (word n-grams)."),
]
SampledShare = Annotated[
    float, typer.Option("--sampled-share", min=0, max=1, help="Share of prompts sent at temperature 0.7.")
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="Maximum output tokens per request.")]
DraftedTokens = Annotated[
    int, typer.Option("--max-tokens", min=2, help="Maximum output tokens per request; drafts follow the first.")
]
Seed = Annotated[int, typer.Option("--seed", help="Random seed.")]
Seeds = Annotated[int, typer.Option("--seeds", min=1, help="Number of random splits of the data.")]

Data = Annotated[list[Path], typer.Option("--data", help="Dataset from `collect` or `label`; repeatable.")]
Paraphrased = Annotated[
    list[Path],
    typer.Option("--paraphrased-data", help="Dataset of the same prompts, made by `label --paraphrase`; repeatable."),
]
Records = Annotated[str, typer.Option("--records", help="Folder or fsspec URL of the router's records.")]
RecordsDir = Annotated[Path | None, typer.Option("--records", help="Folder of the router's records.")]
RegistryDir = Annotated[
    Path, typer.Option("--registry", envvar="DRAFTPICK_REGISTRY", help="Folder of the policy registry.")
]

Learner = Annotated[str, typer.Option("--learner", help="Learner; an unknown name lists all of them.")]
DefaultEngine = Annotated[
    str, typer.Option("--default-engine", help="The fleet's default engine, the baseline of the comparison.")
]
Featurizer = Annotated[
    str | None, typer.Option("--featurizer", help="Featurizer of the contexts; default: the smallest in the data.")
]
TrainingDomains = Annotated[
    list[str],
    typer.Option(
        "--training-domain",
        help="ENGINE=PROMPTS that its drafter was trained on, e.g. code=generated:code; repeatable.",
    ),
]
Workers = Annotated[int, typer.Option("--workers", min=0, help="Number of Ray workers; 0: run in this process.")]
Checkpoints = Annotated[
    str | None,
    typer.Option(
        "--checkpoints",
        help="Folder or URL for training checkpoints, reachable by all workers; default: beside the output.",
    ),
]
