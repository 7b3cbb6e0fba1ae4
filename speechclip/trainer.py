"""Training a head from the store, on one worker or many, with the same result. Free of Ray."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from speechclip.checkpoint import CRITERION, Best, CheckpointInfo, RunFolder, RunIdentity, RunInfo, check_continues
from speechclip.errors import InvalidInput
from speechclip.heads import Head, ParallelConfig
from speechclip.loader import Batch, Loader
from speechclip.losses import ContrastiveLoss
from speechclip.metrics import MetricsLog
from speechclip.recipe import Recipe
from speechclip.records import Record
from speechclip.spec import EncoderSpec
from speechclip.world import World

logger = logging.getLogger(__name__)

PROGRESS_SECONDS = 5.0
# Checkpoints kept beside the best one.
NUM_KEPT = 2
Validate = Callable[[Head, World], float]


class Progress(Record, frozen=True):
    """How far a run has come; `recall` is the mean recall at 10 on dev where this step was validated.

    `wait_share` is the part of the time since the last one that worker 0 waited for data.
    """

    step: int
    max_steps: int
    loss: float
    steps_per_second: float
    eta_seconds: float
    wait_share: float
    recall: float | None = None


def configure_head(recipe: Recipe, speech: EncoderSpec, image: EncoderSpec) -> ParallelConfig:
    """The head that a recipe asks for, at the sizes of these features."""
    return ParallelConfig(
        num_layers=len(speech.layers),
        width=speech.width,
        image_width=image.width,
        embedding_width=recipe.embedding_width or image.width,
        feed_forward_width=recipe.feed_forward_factor * speech.width,
        num_heads=recipe.num_heads,
        dropout=recipe.dropout,
        normalize=recipe.normalize_states,
        image_projection=recipe.image_projection,
    )


@dataclass
class _Pace:
    """Time since the last progress line."""

    started: float
    num_steps: int = 0
    wait_seconds: float = 0.0


class Trainer:
    """One worker of a run: every worker holds the whole head, reads its part of each batch and takes the same step.

    Dropout, order and crops are functions of seed, step and row. So a run that goes on from a checkpoint equals one
    never cut short, to the last bit on the same machine; another number of workers agrees within rounding.
    """

    def __init__(
        self,
        *,
        identity: RunIdentity,
        loader: Loader,
        folder: RunFolder,
        validate: Validate | None = None,
        device: torch.device | str = "cpu",
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self.identity, self.recipe, self.loader, self.folder = identity, identity.recipe, loader, folder
        self.world, self.device = loader.world, torch.device(device)
        self.validate, self.on_progress = validate, on_progress or (lambda progress: None)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.seed)
            self.head = identity.head.build()
        self.criterion = ContrastiveLoss(self.recipe.temperature, is_learnable=self.recipe.is_temperature_learnable)
        self.head.to(self.device).train()
        self.criterion.to(self.device)
        self.optimizer = torch.optim.Adam(
            self._parameters().values(), lr=self.recipe.learning_rate, weight_decay=self.recipe.weight_decay
        )
        self.step, self.order_digest = 0, ""
        self.best: Best | None = None

    def fit(self) -> RunInfo:
        """Train to the recipe's end, from the folder's last checkpoint if it has one; worker 0 writes the folder."""
        self.resume()
        with ExitStack() as stack:
            log = stack.enter_context(MetricsLog(self.folder.storage, self.step)) if self.world.rank == 0 else None
            pace = _Pace(time.perf_counter())
            for batch, wait_seconds in self._batches():
                started = time.perf_counter()
                values = self.take_step(batch)
                values |= {"wait_seconds": wait_seconds, "compute_seconds": time.perf_counter() - started}
                recall = self._validate_if_due()
                pace.num_steps, pace.wait_seconds = pace.num_steps + 1, pace.wait_seconds + wait_seconds
                if log is not None:
                    log.write(self.step, values if recall is None else values | {"dev_recall_at_10": recall})
                    self._store_if_due(log)
                    pace = self._tell(pace, values["loss"], recall)
        return self._finish()

    def resume(self) -> None:
        """Take up the last checkpoint; `InvalidInput` where it is of another run or of another order of rows."""
        found = check_continues(self.folder, self.identity)
        step = self.world.agree(found.step if found else 0, self.device)
        if step == 0:
            return
        found = self.folder.checkpoint(step)
        if found.order_digest != self.loader.order.digest(step):
            raise InvalidInput(
                f"{self.folder.uri}: step {step} was reached by other batches than manifest, snapshot and seed "
                "now give; train into a new folder"
            )
        head, optimizer = self.folder.read_checkpoint(found)
        self._load(head, optimizer)
        self.step, self.order_digest, self.best = step, found.order_digest, found.best
        logger.info("%s: goes on after step %d", self.folder.uri, step)

    def take_step(self, batch: Batch) -> dict[str, float]:
        """One update by the global batch; the figures of the step, bytes and seconds those of this worker."""
        assert batch.step == self.step
        num_rows = self.loader.order.rows_per_batch
        moved = batch.to(self.device)
        rate = self.recipe.learning_rate_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        local = self.head(moved.frames, moved.lengths, moved.seeds).embedding
        speech = self.world.gather_rows(local, num_rows)
        loss = self.criterion(speech, self.head.embed_images(moved.images), moved.groups)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = list(self._parameters().values())
        self.world.average([parameter.grad for parameter in parameters if parameter.grad is not None])
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.recipe.clip_norm)
        self.optimizer.step()
        self.order_digest = self.loader.order.extend_digest(self.order_digest, self.step)
        self.step += 1
        return {
            "loss": loss.item(),
            "learning_rate": rate,
            "gradient_norm": norm.item(),
            "num_bytes": float(batch.num_bytes),
            "read_seconds": batch.read_seconds,
        }

    def weights(self) -> dict[str, Tensor]:
        """All trained numbers by name, on the CPU; those of the loss start with `criterion.`."""
        return {name: parameter.detach().cpu() for name, parameter in self._parameters().items()}

    def _batches(self) -> Iterator[tuple[Batch, float]]:
        """Each batch that is left, and how long this worker waited for it."""
        batches = self.loader.batches(self.step, self.recipe.max_steps)
        asked = time.perf_counter()
        for batch in batches:
            yield batch, time.perf_counter() - asked
            asked = time.perf_counter()

    def _parameters(self) -> dict[str, torch.nn.Parameter]:
        return dict(self.head.named_parameters()) | {
            f"{CRITERION}{name}": parameter for name, parameter in self.criterion.named_parameters()
        }

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.recipe.max_steps

    def _validate_if_due(self) -> float | None:
        if self.validate is None or not self._is_due(self.recipe.validate_every):
            return None
        self.head.eval()
        recall = self.validate(self.head, self.world)
        self.head.train()
        # A tie goes to the later step: on small dev splits recall at 10 saturates while the head still improves.
        if self.best is None or recall >= self.best.recall:
            self.best = Best(step=self.step, recall=recall)
        return recall

    def _store_if_due(self, log: MetricsLog) -> None:
        is_best = self.best is not None and self.best.step == self.step
        if not is_best and not self._is_due(self.recipe.checkpoint_every):
            return
        info = CheckpointInfo(
            step=self.step, identity=self.identity, order_digest=self.order_digest, best=self.best, files={}
        )
        self.folder.write_checkpoint(info, self.weights(), self._moments())
        self.folder.prune(set(self.folder.steps()[-NUM_KEPT:]) | ({self.best.step} if self.best else set()))
        log.sync()

    def _moments(self) -> dict[str, Tensor]:
        state = self.optimizer.state
        return {
            f"{name}.{kind}": value.detach().cpu()
            for name, parameter in self._parameters().items()
            for kind, value in state[parameter].items()
        }

    def _load(self, head: dict[str, Tensor], optimizer: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._parameters().items():
                parameter.copy_(head[name])
        state: dict[int, dict[str, Tensor]] = {}
        for index, name in enumerate(self._parameters()):
            state[index] = {kind: optimizer[f"{name}.{kind}"] for kind in ("step", "exp_avg", "exp_avg_sq")}
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})

    def _tell(self, pace: _Pace, loss: float, recall: float | None) -> _Pace:
        """Report if it is time to, or if there is a recall to report; the pace from here on."""
        now = time.perf_counter()
        seconds = now - pace.started
        if seconds < PROGRESS_SECONDS and recall is None and self.step < self.recipe.max_steps:
            return pace
        rate = pace.num_steps / seconds
        progress = Progress(
            step=self.step,
            max_steps=self.recipe.max_steps,
            loss=loss,
            steps_per_second=rate,
            eta_seconds=(self.recipe.max_steps - self.step) / rate,
            wait_share=pace.wait_seconds / seconds,
            recall=recall,
        )
        self.on_progress(progress)
        return _Pace(now)

    def _finish(self) -> RunInfo:
        order = self.loader.order
        info = RunInfo(
            identity=self.identity,
            num_rows=len(order.rows),
            num_missing=order.rows.num_missing,
            batch_size=order.rows_per_batch,
            num_steps=self.step,
            order_digest=self.order_digest,
            head_step=self.best.step if self.best else self.step,
            best=self.best,
            head_sha256="",
        )
        if self.world.rank != 0:
            return info
        weights, _ = self.folder.read_checkpoint(self.folder.checkpoint(info.head_step))
        return self.folder.finish(info, weights)
