"""Distributed training of networks: Ray Data distributes the rows, Ray Train runs the same loop on every worker.

Gradients are averaged (gloo), so that a step equals that of a single process with all rows. Progress is checkpointed: a
failed worker is replaced, and a killed run resumes when it is restarted with the same data.
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
    """`number`: of workers, at least 1; `storage`: a shared folder or URL for checkpoints."""

    number: int
    storage: str


class Network(Protocol):
    """A model that can be fitted on workers; it is sent to each of them."""

    def work(self, rows: "torch.Tensor", part: "WorkerShard") -> None:
        """Fit to a shard of the rows, together with the other workers; the last saved state is the result."""


@dataclass(frozen=True, slots=True)
class WorkerShard:
    """One worker's part, number `rank` of `world`. `rows`: total number of rows; `shared` wraps a model for averaged
    gradients."""

    rank: int
    world: int
    rows: int
    shared: Callable[[Any], Any]

    def weight(self, shard: int) -> float:
        """Weight of the mean loss of a shard of this size: the mean over shards is then the mean over rows."""
        return shard * self.world / self.rows

    def seed(self, *numbers: int) -> None:
        """Seed the random numbers by worker and by position in the run."""
        import torch

        torch.manual_seed(int(np.random.SeedSequence((*numbers, self.rank)).generate_state(1)[0]))

    def last_state(self) -> dict[str, Any] | None:
        """The last saved state, of this run or of a killed one."""
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        return None if checkpoint is None else _read(checkpoint)

    def save_state(self, state: dict[str, Any], done: int, total: int) -> None:
        """Save a checkpoint, a few times per run; every worker calls it after each of `total` rounds."""
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
        """Concatenate the rows of all workers."""
        import torch
        import torch.distributed

        found: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(found, mine)
        return torch.cat(found)


def fit_on(workers: Workers, network: Network, rows: npt.NDArray[np.float32]) -> dict[str, Any]:
    """Fit `network` to rows [n, columns] and return its state. Raises Ray's error if workers fail repeatedly."""
    import ray.data
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    ray.data.DataContext.get_current().enable_progress_bars = False
    digest = sha256(rows.tobytes() + pickle.dumps((network, workers.number))).hexdigest()[:16]
    trainer = TorchTrainer(
        _work,
        train_loop_config={"network": network, "rows": len(rows)},
        datasets={"rows": ray.data.from_numpy(rows)},
        scaling_config=ray.train.ScalingConfig(num_workers=workers.number),
        torch_config=TorchConfig(backend="gloo"),
        run_config=ray.train.RunConfig(
            name=f"fit-{digest}",
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
    """The training function of each worker."""
    import ray.train
    import torch
    from ray.train.torch import prepare_model

    context = ray.train.get_context()
    shard = ray.train.get_dataset_shard("rows").iter_batches(batch_size=None, batch_format="numpy")
    rows = torch.from_numpy(np.concatenate([batch["data"] for batch in shard]))
    part = WorkerShard(context.get_world_rank(), context.get_world_size(), config["rows"], prepare_model)
    config["network"].work(rows, part)
