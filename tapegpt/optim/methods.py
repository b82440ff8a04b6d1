"""The optimizers that a tape makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tapegpt.tape.handles import Node
from tapegpt.tape.types import Ids, TapeError

if TYPE_CHECKING:
    from tapegpt.optim.optimizer import Optimizer

Leaves = Sequence[Node] | Ids | None
BETAS = (0.9, 0.999)


class Optimizers:
    """Optimizers of named leaves, or of all parameters of the tape.

        opt = tape.adam(lr=0.01)         # all that `parameter` recorded
        opt = tape.adam([w, b], lr=0.01) # these leaves; or an array of ids, as `variables` gives it
        opt.step(loss, n=1000)

    lr: the learning rate, above 0. All raise TapeError for settings that have no meaning.
    """

    def sgd(self, leaves: Leaves = None, *, lr: float = 0.1, momentum: float = 0.0) -> Optimizer:
        """v = momentum v + g, w = w - lr v. (Polyak 1964)

        momentum: from 0 to below 1.
        """
        return self._optimizer("sgd", leaves, lr, momentum=momentum)

    def adam(
        self,
        leaves: Leaves = None,
        *,
        lr: float = 0.001,
        betas: tuple[float, float] = BETAS,
        eps: float = 1e-8,
    ) -> Optimizer:
        """Adam (Kingma and Ba 2015); betas: of the mean gradient and of its mean square."""
        return self._optimizer("adam", leaves, lr, betas=betas, eps=eps)

    def adamw(
        self,
        leaves: Leaves = None,
        *,
        lr: float = 0.001,
        betas: tuple[float, float] = BETAS,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        cautious_decay: bool = False,
    ) -> Optimizer:
        """Adam, where a step also takes lr weight_decay of each number.

        (Loshchilov and Hutter 2019) cautious_decay: only of those that the step brings nearer to
        0 (L. Chen and others, "Cautious Weight Decay", 2025).
        """
        return self._optimizer(
            "adamw",
            leaves,
            lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            cautious_decay=cautious_decay,
        )

    def muon(
        self,
        matrices: Sequence[Node],
        leaves: Leaves = None,
        *,
        lr: float = 0.02,
        momentum: float = 0.95,
        adam_lr: float = 0.001,
        betas: tuple[float, float] = BETAS,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        cautious_decay: bool = False,
    ) -> Optimizer:
        """Muon (Jordan et al. 2024) for these arrays, and AdamW at adam_lr for other leaves.

        matrices: hidden weights; leaves: all that is moved, those arrays too. cautious_decay: as
        with adamw.
        """
        from tapegpt.optim.update import checked_rate

        tape: Any = self
        if not isinstance(matrices, (list, tuple)) or not matrices:
            raise TapeError(f"muon wants a list of at least one matrix, not {matrices!r:.60}")
        given = tuple(dict.fromkeys(tape._leaf(node) for node in matrices))
        for node in given:
            tape._array(node)
        return self._optimizer(
            "muon",
            leaves,
            lr,
            matrices=given,
            momentum=momentum,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            cautious_decay=cautious_decay,
            other_rate=checked_rate(adam_lr, "adam_lr") / checked_rate(lr),
        )

    def _optimizer(self, name: str, leaves: Leaves, lr: float, **settings: Any) -> Optimizer:
        from tapegpt.optim.optimizer import Optimizer
        from tapegpt.optim.update import Update

        tape: Any = self
        return Optimizer(tape, Update(name, **settings), lr, leaves)
