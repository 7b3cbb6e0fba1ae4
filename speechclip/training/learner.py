"""Every number that training changes, on one worker: the head, the loss and the optimizer, and how a step changes them.

Source: docs/model.md, "Loss" and "Training settings".
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from speechclip.heads import HeadOutput, KeywordHead
from speechclip.training.blueprint import build_criterion
from speechclip.training.checkpoint import CRITERION
from speechclip.training.identity import RunIdentity
from speechclip.training.loader import Batch
from speechclip.training.precision import Precision
from speechclip.training.run import build_head
from speechclip.training.vocabulary import Vocabulary
from speechclip.training.world import World


class Learner:
    """The head, the loss and the optimizer of one worker.

    Every worker holds the whole head. All start from the same seed, average their gradients at each step and so keep
    the same numbers.
    """

    def __init__(
        self, identity: RunIdentity, vocabulary: Vocabulary | None, world: World, device: torch.device
    ) -> None:
        self.recipe, self.world, self.device = identity.recipe, world, device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.seed)
            self.head = build_head(identity, vocabulary)
        if isinstance(self.head, KeywordHead) and self.recipe.norm_scope == "synchronised":
            self.head.work_together(world)
        self.criterion = build_criterion(self.recipe)
        self.head.to(device).train()
        self.criterion.to(device)
        # Adam with L2 decay as in the official code, not AdamW.
        self.optimizer = torch.optim.Adam(
            self.parameters().values(), lr=self.recipe.learning_rate, weight_decay=self.recipe.weight_decay
        )
        self.precision = Precision(self.recipe.precision, device)

    def update(self, batches: Sequence[Batch], step: int) -> dict[str, float]:
        """Change all numbers once, by the mean gradient of these global batches; `step` updates came before.

        The result has `loss`, with several branches or targets also a `…_loss` of each, `learning_rate` and
        `gradient_norm` (before clipping).
        """
        rate = self.recipe.learning_rate_at(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        losses = [self._backward(batch, step) for batch in batches]
        parameters = list(self.parameters().values())
        self.world.average([parameter.grad for parameter in parameters if parameter.grad is not None])
        norm = self.precision.step(self.optimizer, parameters, self.recipe.clip_norm)
        means = {name: sum(parts[name] for parts in losses) / len(losses) for name in losses[0]}
        return means | {"learning_rate": rate, "gradient_norm": norm}

    def losses(self, output: HeadOutput, batch: Batch) -> dict[str, Tensor]:
        """The weighted loss over the whole global batch, of each branch towards each target.

        The names are those of branch and target, such as `parallel_image`. A head that learns how many keywords an
        utterance has adds `length`.
        """
        num_rows = len(batch.groups)
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

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """All parameters by name. That of the loss starts with `criterion.`."""
        return dict(self.head.named_parameters()) | {
            f"{CRITERION}{name}": parameter for name, parameter in self.criterion.named_parameters()
        }

    def weights(self) -> dict[str, Tensor]:
        """All parameters and running statistics by name, on the CPU."""
        return {name: value.detach().cpu() for name, value in self._state().items()}

    def moments(self) -> dict[str, Tensor]:
        """What the optimizer and the precision remember of earlier steps, by name, on the CPU."""
        state = self.optimizer.state
        return {
            f"{name}.{kind}": value.detach().cpu()
            for name, parameter in self.parameters().items()
            for kind, value in state[parameter].items()
        } | self.precision.state()

    def load(self, weights: dict[str, Tensor], moments: dict[str, Tensor]) -> None:
        """Continue from what `weights` and `moments` gave."""
        with torch.no_grad():
            for name, value in self._state().items():
                value.copy_(weights[name])
        state: dict[int, dict[str, Tensor]] = {}
        for index, name in enumerate(self.parameters()):
            # A branch with weight 0 never gets a gradient, so Adam remembers nothing of it.
            if f"{name}.step" not in moments:
                continue
            state[index] = {kind: moments[f"{name}.{kind}"] for kind in ("step", "exp_avg", "exp_avg_sq")}
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})
        self.precision.load(moments)

    def copy_statistics(self) -> None:
        """Give every worker the running statistics of worker 0. With `norm_scope: local` each has its own."""
        learned = self.parameters()
        self.world.copy_first([value for name, value in self._state().items() if name not in learned])

    def _state(self) -> dict[str, Tensor]:
        return self.head.state_dict() | {
            f"{CRITERION}{name}": value for name, value in self.criterion.state_dict().items()
        }

    def _backward(self, batch: Batch, step: int) -> dict[str, float]:
        """Add the gradients of one global batch. The result is its loss, and its parts if there are several."""
        moved = batch.to(self.device)
        with self.precision.autocast():
            output = self.head(moved.frames, moved.lengths, moved.seeds, step=step)
        parts = self.losses(output, moved)
        loss = sum(parts.values(), start=torch.zeros((), device=self.device))
        torch.autograd.backward(self.precision.scale(loss / self.recipe.accumulation))
        values = {f"{name}_loss": part.item() for name, part in parts.items()} if len(parts) > 1 else {}
        return values | {"loss": loss.item()}
