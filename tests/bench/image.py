"""The CPU image's recipe, step by step on a clean root: `python -m tests.bench.image --json-file FILE` (10 minutes).

Where there is no container engine, `deploy/docker/cpu.Dockerfile` is executed all the same: each stage is a folder that
begins as a Debian made by debootstrap, RUN runs in it (chroot) with the environment, the folder and the user that the
recipe gives it, COPY copies what `.dockerignore` lets through. Then the command of the recipe is started in the result
as compose.yaml does it (read-only, as its user), with no network but a loopback of its own, for the mock fleet and for
two real vLLM engines; HEALTHCHECK's own command and one answer tell whether it works.

Figures go to FILE beside those it has: `image_steps_run` of `image_steps` instructions, `image_size_mb`,
`image_answers` and `image_answers_vllm` (1: yes); `image` says in what this is no `docker build`. All that is made lies
in a folder that is removed in the end, mounts and processes in namespaces that end with the command.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from draftpick.deploy.console import out
from draftpick.deploy.workflows.results import merge_into, write
from draftpick.policy_training.evaluation.evaluate import Interval
from tests.bench.figures import show
from tests.bench.recipe import Recipe

ROOT = Path(__file__).parents[2]
DOCKERFILE = "cpu.Dockerfile"
NEEDED = ("debootstrap", "unshare", "nsenter", "chroot", "ip")
FREE_GB = 25
FLEETS = {"image_answers": ["--config", "mock"], "image_answers_vllm": ["--engines", "plain,suffix"]}
"""What the recipe's command is told beside its own arguments, by the figure that it gives."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, default=Path("/var/tmp"), help="where 20 GB are free")
    parser.add_argument("--json-file", type=Path)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        (args.inside / "told.json").write_text(json.dumps(built(args.inside)))
        return
    _check(args.scratch)
    with tempfile.TemporaryDirectory(prefix="draftpick-image-", dir=args.scratch) as folder:
        # In namespaces of its own: no mount and no process outlives it, so that the folder can be removed.
        apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        subprocess.run([*apart, sys.executable, "-m", "tests.bench.image", "--inside", folder], cwd=ROOT, check=True)
        told = json.loads((Path(folder) / "told.json").read_text())
    figures = {name: Interval(value, value, value) for name, value in told["figures"].items()}
    show(figures)
    for line in told["differs"]:
        out.print(f"- {line}", highlight=False)
    if args.json_file and args.json_file.exists():
        merge_into(args.json_file, figures, image={"differs": told["differs"]})
    elif args.json_file:
        write(args.json_file, 1, figures, image={"differs": told["differs"]})


def _check(scratch: Path) -> None:
    """End with what is missing, if anything is."""
    if os.geteuid() != 0:
        raise SystemExit("error: only root may change roots and mount")
    if missing := [name for name in NEEDED if shutil.which(name) is None]:
        raise SystemExit(f"error: not installed: {', '.join(missing)}")
    if shutil.disk_usage(scratch).free < FREE_GB * 1e9:
        raise SystemExit(f"error: {scratch} has less than {FREE_GB} GB free (another folder: --scratch)")


def built(folder: Path) -> dict[str, object]:
    """Execute the recipe in `folder` and try what came out; a step that fails ends it."""
    recipe = Recipe(DOCKERFILE, ROOT, folder)
    figures = {"image_steps": float(len(recipe.steps))}
    try:
        for number, step in enumerate(recipe.steps, start=1):
            out.print(f"[bold]{number}/{len(recipe.steps)}[/bold] {step.word} {step.rest}"[:160], highlight=False)
            recipe.execute(step)
        figures["image_size_mb"] = recipe.size_mb()
        for figure, arguments in FLEETS.items():
            out.print(f"[bold]{figure}[/bold] {' '.join(arguments)}", highlight=False)
            figures[figure] = float(recipe.answers(arguments))
    except subprocess.CalledProcessError as error:
        out.print(f"[red]failed:[/red] {error}", highlight=False)
    figures["image_steps_run"] = recipe.executed
    return {"figures": figures, "differs": recipe.differs()}


if __name__ == "__main__":
    main()
