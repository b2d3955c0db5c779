"""The target's outputs along its answers, computed once: its likeliest tokens, and hidden states for heads."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from draftpick.engines.atomic_write import atomic_folder
from draftpick.engines.drafters.training.responses import Responses

TOP = 32
"""Tokens kept per position; a small target has a few per cent of its mass beyond the 32 likeliest."""


@dataclass(frozen=True, slots=True)
class _Arrays:
    """`tokens` and `probabilities` [answer tokens, t], `features` [all tokens, f]; start offsets of the answers in
    each."""

    tokens: npt.NDArray[np.int32]
    probabilities: npt.NDArray[np.float16]
    features: npt.NDArray[np.uint16]
    starts: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]


class TargetOutputs:
    """For each answer: the likeliest tokens at every position, and the hidden states of the sequence."""

    def __init__(self, arrays: Sequence[_Arrays]) -> None:
        self._arrays = list(arrays)
        self._firsts = np.cumsum([0, *(len(a.starts) - 1 for a in arrays)])
        self.width = self._arrays[0].features.shape[1]
        """Columns of the features: layers x hidden size."""

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def likeliest(self, i: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float16]]:
        """Return (tokens, their probabilities), each [tokens of answer i, t], likeliest first."""
        arrays, i = self._locate(i)
        rows = slice(arrays.starts[i], arrays.starts[i + 1])
        return arrays.tokens[rows], arrays.probabilities[rows]

    def features(self, i: int) -> npt.NDArray[np.uint16]:
        """Return the layer inputs, concatenated [tokens of prompt and answer i, width], as bfloat16 bits."""
        arrays, i = self._locate(i)
        return arrays.features[arrays.places[i] : arrays.places[i + 1]]

    def _locate(self, i: int) -> tuple[_Arrays, int]:
        part = int(np.searchsorted(self._firsts, i, side="right")) - 1
        return self._arrays[part], i - int(self._firsts[part])

    @classmethod
    def load(cls, folder: Path) -> "TargetOutputs":
        """Memory-map the output of `collect_target_outputs`."""
        names = ("tokens", "probabilities", "features", "starts", "places")
        return cls([_Arrays(*(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names))])

    @classmethod
    def join(cls, teachers: "Sequence[TargetOutputs]") -> "TargetOutputs":
        """Concatenate, for joined answers."""
        return cls([arrays for teacher in teachers for arrays in teacher._arrays])


def collect_target_outputs(
    target: Path,
    answers: Responses,
    folder: Path,
    on_progress: Callable[[int, int], None],
    layers: Sequence[int] = (),
    device: str = "cpu",
) -> TargetOutputs:
    """Run the target over its answers, one at a time, and write to a folder; calls `on_progress(done, total)` after
    each."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.bfloat16).to(device).eval()
    with atomic_folder(folder) as scratch:
        _fill(scratch, model, answers, on_progress, layers)
    return TargetOutputs.load(folder)


def _fill(
    folder: Path, model: Any, answers: Responses, on_progress: Callable[[int, int], None], layers: Sequence[int]
) -> None:
    import torch

    lengths = np.diff(answers.starts) - answers.answer_at
    starts = np.concatenate([[0], np.cumsum(lengths)])
    np.save(folder / "starts.npy", starts)
    np.save(folder / "places.npy", answers.starts)
    width = len(layers) * model.config.hidden_size
    tokens = _new(folder / "tokens.npy", np.int32, int(starts[-1]), TOP)
    probabilities = _new(folder / "probabilities.npy", np.float16, int(starts[-1]), TOP)
    features = _new(folder / "features.npy", np.uint16, len(answers.tokens), width)
    for i in range(len(answers)):
        place = slice(answers.starts[i], answers.starts[i + 1])
        ids = torch.from_numpy(answers.tokens[place].astype(np.int64))[None].to(model.device)
        with torch.inference_mode():
            out = model.model(input_ids=ids, output_hidden_states=bool(layers))
            top = model.lm_head(out.last_hidden_state[0, answers.answer_at[i] - 1 : -1]).float().softmax(-1).topk(TOP)
            if layers:
                states = torch.cat([out.hidden_states[layer][0] for layer in layers], dim=-1)
                features[place] = states.view(torch.uint16).cpu().numpy()
        tokens[starts[i] : starts[i + 1]] = top.indices.cpu().numpy()
        probabilities[starts[i] : starts[i + 1]] = top.values.cpu().numpy()
        on_progress(i + 1, len(answers))


def _new(path: Path, dtype: Any, rows: int, columns: int) -> npt.NDArray[Any]:
    """Create an array file; an empty array is written directly, since it cannot be mapped."""
    if rows * columns == 0:
        np.save(path, np.zeros((rows, columns), dtype))
        return np.zeros((rows, columns), dtype)
    array: npt.NDArray[Any] = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
        path, mode="w+", dtype=dtype, shape=(rows, columns)
    )
    with path.open("r+b") as file:
        os.posix_fallocate(
            file.fileno(), 0, path.stat().st_size
        )  # a full disk is an error now, not a killed process later
    return array
