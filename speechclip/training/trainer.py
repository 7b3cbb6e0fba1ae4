"""Training a head from the store, on one worker or many, with the same result. Free of Ray."""

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from speechclip.errors import InvalidInput
from speechclip.heads import Head, HeadOutput, KeywordHead
from speechclip.records import Record
from speechclip.training.blueprint import build_criterion
from speechclip.training.checkpoint import CRITERION, RunFolder, check_continues
from speechclip.training.identity import Best, CheckpointInfo, RunIdentity, RunInfo
from speechclip.training.loader import Batch, Loader
from speechclip.training.metrics import MetricsLog
from speechclip.training.precision import Precision
from speechclip.training.run import build_head
from speechclip.training.vocabulary import Vocabulary
from speechclip.training.world import World

logger = logging.getLogger(__name__)

PROGRESS_SECONDS = 5.0
# Checkpoints kept beside the best one.
NUM_KEPT = 2
Validate = Callable[[Head, World], float]


class TrainingProgress(Record, frozen=True):
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
        vocabulary: Vocabulary | None = None,
        validate: Validate | None = None,
        device: torch.device | str = "cpu",
        on_progress: Callable[[TrainingProgress], None] | None = None,
    ) -> None:
        self.identity, self.recipe, self.loader, self.folder = identity, identity.recipe, loader, folder
        self.vocabulary = vocabulary
        self.world, self.device = loader.world, torch.device(device)
        self.validate, self.on_progress = validate, on_progress or (lambda progress: None)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.seed)
            self.head = build_head(identity, vocabulary)
        if isinstance(self.head, KeywordHead) and self.recipe.norm_scope == "synchronised":
            self.head.work_together(self.world)
        self.criterion = build_criterion(self.recipe)
        self.head.to(self.device).train()
        self.criterion.to(self.device)
        # The official L2 decay, not AdamW's.
        self.optimizer = torch.optim.Adam(
            self._parameters().values(), lr=self.recipe.learning_rate, weight_decay=self.recipe.weight_decay
        )
        self.precision = Precision(self.recipe.precision, self.device)
        self.step, self.order_digest = 0, ""
        self.best: Best | None = None

    def fit(self) -> RunInfo:
        """Train to the recipe's end, from the folder's last checkpoint if it has one; worker 0 writes the folder."""
        self.resume()
        with ExitStack() as stack:
            log = stack.enter_context(MetricsLog(self.folder.storage, self.step)) if self.world.rank == 0 else None
            pace = _Pace(time.perf_counter())
            for batches, wait_seconds in self._batches():
                started = time.perf_counter()
                values = self.take_step(batches)
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
        if found.order_digest != self.loader.order.digest(step * self.recipe.accumulation):
            raise InvalidInput(
                f"{self.folder.uri}: step {step} was reached by other batches than manifest, snapshot and seed "
                "now give; train into a new folder"
            )
        head, optimizer = self.folder.read_checkpoint(found)
        self._load(head, optimizer)
        self.step, self.order_digest, self.best = step, found.order_digest, found.best
        logger.info("%s: goes on after step %d", self.folder.uri, step)

    def take_step(self, batches: Sequence[Batch]) -> dict[str, float]:
        """One update by the recipe's number of global batches; bytes and seconds in the figures are this worker's."""
        rate = self.recipe.learning_rate_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        losses = [self._backward(batch) for batch in batches]
        parameters = list(self._parameters().values())
        self.world.average([parameter.grad for parameter in parameters if parameter.grad is not None])
        norm = self.precision.step(self.optimizer, parameters, self.recipe.clip_norm)
        if not math.isfinite(norm) and not self.precision.is_scaled:
            raise InvalidInput(
                f"{self.folder.uri}: step {self.step + 1}: gradients of norm {norm}, the run has diverged; lower "
                "learning_rate or raise temperature, and train into a new folder"
            )
        for batch in batches:
            self.order_digest = self.loader.order.extend_digest(self.order_digest, batch.number)
        self.step += 1
        means = {name: sum(parts[name] for parts in losses) / len(losses) for name in losses[0]}
        return means | {
            "learning_rate": rate,
            "gradient_norm": norm,
            "num_bytes": float(sum(batch.num_bytes for batch in batches)),
            "read_seconds": sum(batch.read_seconds for batch in batches),
        }

    def _backward(self, batch: Batch) -> dict[str, float]:
        """Add the gradients of one global batch; its loss, and the parts of it where there are several."""
        moved = batch.to(self.device)
        with self.precision.autocast():
            output = self.head(moved.frames, moved.lengths, moved.seeds, step=self.step)
        parts = self._losses(output, moved)
        loss = sum(parts.values(), start=torch.zeros((), device=self.device))
        torch.autograd.backward(self.precision.scale(loss / self.recipe.accumulation))
        values = {f"{name}_loss": part.item() for name, part in parts.items()} if len(parts) > 1 else {}
        return values | {"loss": loss.item()}

    def _losses(self, output: HeadOutput, batch: Batch) -> dict[str, Tensor]:
        """The weighted loss of each branch towards each target over the whole global batch, and that of the lengths."""
        num_rows = self.loader.order.rows_per_batch
        targets = {name: self.head.embed_images(vectors) for name, vectors in batch.targets.items()}
        parts: dict[str, Tensor] = {}
        for branch, branch_weight in self.recipe.branch_weights.items():
            if not branch_weight:
                continue
            speech = self.world.gather_rows(getattr(output, branch), num_rows)
            for target, target_weight in self.recipe.target_weights.items():
                loss = self.criterion(speech, targets[target], batch.groups)
                parts[f"{branch}_{target}"] = branch_weight * target_weight * loss
        if output.length_errors is not None:
            errors = self.world.gather_rows(output.length_errors[:, None], num_rows)
            parts["length"] = self.recipe.length_weight * errors.mean()
        return parts

    def weights(self) -> dict[str, Tensor]:
        """All trained numbers and running statistics by name, on the CPU; those of the loss start with `criterion.`."""
        return {name: value.detach().cpu() for name, value in self._state().items()}

    def _batches(self) -> Iterator[tuple[list[Batch], float]]:
        """The batches of each step that is left, and how long this worker waited for them."""
        each = self.recipe.accumulation
        batches = self.loader.batches(self.step * each, self.recipe.max_steps * each)
        asked = time.perf_counter()
        while taken := list(itertools.islice(batches, each)):
            yield taken, time.perf_counter() - asked
            asked = time.perf_counter()

    def _parameters(self) -> dict[str, torch.nn.Parameter]:
        return dict(self.head.named_parameters()) | {
            f"{CRITERION}{name}": parameter for name, parameter in self.criterion.named_parameters()
        }

    def _state(self) -> dict[str, Tensor]:
        return self.head.state_dict() | {
            f"{CRITERION}{name}": value for name, value in self.criterion.state_dict().items()
        }

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.recipe.max_steps

    def _validate_if_due(self) -> float | None:
        if self.validate is None or not self._is_due(self.recipe.validate_every):
            return None
        self.head.eval()
        # Statistics of local rows differ by worker; the ones that are kept are worker 0's.
        learned = self._parameters()
        self.world.copy_first([value for name, value in self._state().items() if name not in learned])
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
        # First the lines: after the checkpoint they will not be written again.
        log.sync()
        self.folder.write_checkpoint(info, self.weights(), self._moments())
        self.folder.prune(set(self.folder.steps()[-NUM_KEPT:]) | ({self.best.step} if self.best else set()))

    def _moments(self) -> dict[str, Tensor]:
        state = self.optimizer.state
        return {
            f"{name}.{kind}": value.detach().cpu()
            for name, parameter in self._parameters().items()
            for kind, value in state[parameter].items()
        } | self.precision.state()

    def _load(self, head: dict[str, Tensor], optimizer: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in self._state().items():
                value.copy_(head[name])
        state: dict[int, dict[str, Tensor]] = {}
        for index, name in enumerate(self._parameters()):
            # A branch without a weight never got a gradient, so Adam keeps nothing of it.
            if f"{name}.step" not in optimizer:
                continue
            state[index] = {kind: optimizer[f"{name}.{kind}"] for kind in ("step", "exp_avg", "exp_avg_sq")}
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})
        self.precision.load(optimizer)

    def _tell(self, pace: _Pace, loss: float, recall: float | None) -> _Pace:
        """Report if it is time to, or if there is a recall to report; the pace from here on."""
        now = time.perf_counter()
        seconds = now - pace.started
        if seconds < PROGRESS_SECONDS and recall is None and self.step < self.recipe.max_steps:
            return pace
        rate = pace.num_steps / seconds
        progress = TrainingProgress(
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
        if self.vocabulary is not None:
            # A second training may have begun here before our first checkpoint, with other words.
            self.folder.write_vocabulary(self.vocabulary)
        return self.folder.finish(info, weights)
