"""Networks that several workers fit together, on as many machines as there are: Ray Data deals out the rows, Ray Train
runs the same loop on every worker.

Gradients are averaged (gloo), so that a step is the one that a single process would take with all rows. What is trained
so far lies in checkpoints: a worker that dies is replaced, and a run that was killed goes on when it is run again with
the same data.
"""

import pickle
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

_STATE = "state.pt"
_RESTARTS = 3
_CHECKPOINTS = 10


@dataclass(frozen=True, slots=True)
class Workers:
    """`number`: how many, 1 or more; `storage`: a folder or URL that all of them see, for checkpoints."""

    number: int
    storage: str


class Network(Protocol):
    """What can be fitted so; it is sent to every worker."""

    def work(self, rows: "torch.Tensor", part: "WorkerShard") -> None:
        """Fit to a shard of the rows, together with the others; what was learned is what is kept last."""


@dataclass(frozen=True, slots=True)
class WorkerShard:
    """One worker's part, number `rank` of `world`. `rows`: of all of them; `shared` makes a model one whose gradients
    are averaged.
    """

    rank: int
    world: int
    rows: int
    shared: Callable[[Any], Any]

    def weight(self, shard: int) -> float:
        """Of the mean loss of a shard of so many rows: the mean of all shards is then that of all rows."""
        return shard * self.world / self.rows

    def seed(self, *numbers: int) -> None:
        """Begin random numbers anew: of this worker, and of this moment of the run."""
        import torch

        torch.manual_seed(int(np.random.SeedSequence((*numbers, self.rank)).generate_state(1)[0]))

    def last_state(self) -> dict[str, Any] | None:
        """What was kept last, of this run or of one that was killed."""
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        return None if checkpoint is None else _read(checkpoint)

    def save_state(self, state: dict[str, Any], done: int, total: int) -> None:
        """Keep what is trained so far, a few times in all; every worker calls it after every one of `total` rounds."""
        import ray.train
        import torch

        if done % max(total // _CHECKPOINTS, 1) and done < total:
            return
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if self.rank == 0:
                torch.save(state, Path(folder) / _STATE)
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report({"done": done, "total": total}, checkpoint=checkpoint)

    def gather(self, mine: "torch.Tensor") -> "torch.Tensor":
        """The rows of all workers, one after the other."""
        import torch
        import torch.distributed

        found: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(found, mine)
        return torch.cat(found)


def fit_on(workers: Workers, network: Network, rows: npt.NDArray[np.float32]) -> dict[str, Any]:
    """What `network` learns of rows [n, columns]. Raises what Ray raises when workers die again and again."""
    import ray.data
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    ray.data.DataContext.get_current().enable_progress_bars = False
    told = sha256(rows.tobytes() + pickle.dumps((network, workers.number))).hexdigest()[:16]
    trainer = TorchTrainer(
        _work,
        train_loop_config={"network": network, "rows": len(rows)},
        datasets={"rows": ray.data.from_numpy(rows)},
        scaling_config=ray.train.ScalingConfig(num_workers=workers.number),
        torch_config=TorchConfig(backend="gloo"),
        run_config=ray.train.RunConfig(
            name=f"fit-{told}",
            storage_path=workers.storage,
            failure_config=ray.train.FailureConfig(max_failures=_RESTARTS),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )
    result = trainer.fit()
    state = _read(result.checkpoint)
    result.filesystem.delete_dir(result.path)
    return state


def _read(checkpoint: Any) -> dict[str, Any]:
    import torch

    with checkpoint.as_directory() as folder:
        return dict(torch.load(Path(folder) / _STATE, weights_only=True))


def _work(config: dict[str, Any]) -> None:
    """What each worker runs."""
    import ray.train
    import torch
    from ray.train.torch import prepare_model

    context = ray.train.get_context()
    shard = ray.train.get_dataset_shard("rows").iter_batches(batch_size=None, batch_format="numpy")
    rows = torch.from_numpy(np.concatenate([batch["data"] for batch in shard]))
    part = WorkerShard(context.get_world_rank(), context.get_world_size(), config["rows"], prepare_model)
    config["network"].work(rows, part)
