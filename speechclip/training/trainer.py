"""Trains a head from stored features, on one worker or several, without Ray: the loop, its checkpoints, its metrics."""

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import torch

from speechclip.errors import InvalidInput
from speechclip.heads import Head
from speechclip.training.checkpoint import RunFolder, check_continues
from speechclip.training.identity import Best, CheckpointInfo, RunIdentity, RunInfo
from speechclip.training.learner import Learner
from speechclip.training.loader import Batch, Loader
from speechclip.training.metrics import MetricsLog
from speechclip.training.progress import Pace, TrainingProgress
from speechclip.training.vocabulary import Vocabulary
from speechclip.training.world import World

logger = logging.getLogger(__name__)

# The best checkpoint and so many of the newest are kept.
NUM_KEPT = 2
Validate = Callable[[Head, World], float]


class Trainer:
    """One worker of a run. It reads its part of each batch and takes the same steps as all others.

    Dropout, order and crops are functions of seed, step and row. So a run that continues from a checkpoint gives the
    same bits as one that was never interrupted, on the same machine. With another number of workers the result differs
    by rounding only.
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
        self.learner = Learner(identity, vocabulary, self.world, self.device)
        self.head = self.learner.head
        self.step, self.order_digest = 0, ""
        self.best: Best | None = None

    def fit(self) -> RunInfo:
        """Train to the recipe's last step, from the newest checkpoint if there is one. Worker 0 writes the folder."""
        self.resume()
        with ExitStack() as stack:
            log = stack.enter_context(MetricsLog(self.folder.storage, self.step)) if self.world.rank == 0 else None
            pace = Pace(self.recipe.max_steps)
            for batches, wait_seconds in self._batches():
                started = time.perf_counter()
                values = self.take_step(batches)
                values |= {"wait_seconds": wait_seconds, "compute_seconds": time.perf_counter() - started}
                recall = self._validate_if_due()
                pace.add_step(wait_seconds)
                if log is not None:
                    log.write(self.step, values if recall is None else values | {"dev_recall_at_10": recall})
                    self._store_if_due(log)
                    progress = pace.report(self.step, values["loss"], recall)
                    if progress is not None:
                        self.on_progress(progress)
        return self._finish()

    def resume(self) -> None:
        """Continue from the newest checkpoint, if there is one.

        `InvalidInput` if it belongs to a run of another identity, or to one that trained on other rows so far.
        """
        found = check_continues(self.folder, self.identity)
        step = self.world.agree(found.step if found else 0, self.device)
        if step == 0:
            return
        found = self.folder.checkpoint(step)
        if found.order_digest != self.loader.order.digest(step * self.recipe.accumulation):
            raise InvalidInput(
                f"{self.folder.uri}: step {step} was reached by other batches than manifest, version and seed give now",
                "train into a new folder",
            )
        self.learner.load(*self.folder.read_checkpoint(found))
        self.step, self.order_digest, self.best = step, found.order_digest, found.best
        logger.info("%s: continues after step %d", self.folder.uri, step)

    def take_step(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Update the head by these global batches; the figures of the step, with this worker's bytes and seconds.

        `InvalidInput` if the gradients are no longer finite.
        """
        values = self.learner.update(batches, self.step)
        norm = values["gradient_norm"]
        if not math.isfinite(norm) and not self.learner.precision.is_scaled:
            raise InvalidInput(
                f"{self.folder.uri}: step {self.step + 1}: gradients of norm {norm}, the run has diverged",
                "lower learning_rate or raise temperature, and train into a new folder",
            )
        for batch in batches:
            self.order_digest = self.loader.order.extend_digest(self.order_digest, batch.number)
        self.step += 1
        return values | {
            "num_bytes": float(sum(batch.num_bytes for batch in batches)),
            "read_seconds": sum(batch.read_seconds for batch in batches),
        }

    def _batches(self) -> Iterator[tuple[list[Batch], float]]:
        """For each step that is left its batches, and how long this worker waited for them."""
        each = self.recipe.accumulation
        batches = self.loader.batches(self.step * each, self.recipe.max_steps * each)
        asked = time.perf_counter()
        while taken := list(itertools.islice(batches, each)):
            yield taken, time.perf_counter() - asked
            asked = time.perf_counter()

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.recipe.max_steps

    def _validate_if_due(self) -> float | None:
        if self.validate is None or not self._is_due(self.recipe.validate_every):
            return None
        self.head.eval()
        self.learner.copy_statistics()
        recall = self.validate(self.head, self.world)
        self.head.train()
        # Of equal recalls the later step counts: on a small dev split recall at 10 soon reaches 1, and the head still
        # becomes better.
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
        # The metrics come first: a run that continues from the checkpoint does not write their lines again.
        log.sync()
        self.folder.write_checkpoint(info, self.learner.weights(), self.learner.moments())
        self.folder.prune(set(self.folder.steps()[-NUM_KEPT:]) | ({self.best.step} if self.best else set()))

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
            # A second training may have started here before our first checkpoint, with another vocabulary.
            self.folder.write_vocabulary(self.vocabulary)
        return self.folder.finish(info, weights)
