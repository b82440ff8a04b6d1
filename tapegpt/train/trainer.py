"""A training run in memory: made from settings or from a saved run, advanced, and saved again."""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tapegpt.checkpoint import Run, RunError, state_names
from tapegpt.corpus import Tokenizer, digest_of, remarks_on, shuffled, tokenize
from tapegpt.errors import DivergedError, UsageError
from tapegpt.graph.compile import CompiledModel, compiled_model
from tapegpt.kernels.loops.train import Training, train_steps
from tapegpt.kernels.loops.validation import held_out_loss
from tapegpt.models.registry import zeros
from tapegpt.presets import default_learning_rate
from tapegpt.recorders.counter import flops, tables
from tapegpt.recorders.memory_estimate import bytes_needed, nodes_needed, sizes_to_shrink
from tapegpt.settings import ModelConfig, TrainConfig
from tapegpt.system.host import bytes_available
from tapegpt.tape.storage import LARGEST_TAPE, aligned_zeros
from tapegpt.train.optimizers import kernel_optimizer
from tapegpt.train.schedules import kernel_schedule
from tapegpt.train.split import split
from tapegpt.train.stopping import StepBudget, TimeBudget, budget_of
from tapegpt.train.workers import Threads

INITIAL_DEVIATION = 0.08  # of the weights, as in microgpt

# A batch that may have more rows than this is packed and swept in turns, and their gradients are
# added up, so that what a sweep writes is still in the cache when it is read.
ROWS_PER_SWEEP = 256


class Trainer:
    """The parameters, their optimizer's state and the corpus, at some step of training.

    Follows microgpt to the last random number: Python's generator is seeded, shuffles the
    documents, then draws the weights row by row, and goes on to draw the samples.
    """

    def __init__(
        self,
        model: ModelConfig,
        training: TrainConfig,
        documents: Sequence[str],
        alphabet: str = "",  # characters to have beside those of the documents
    ) -> None:
        self.learning_rate = training.learning_rate or default_learning_rate(model, training)
        self.model = model
        self.training = replace(training, learning_rate=self.learning_rate)
        self.step = 0
        self.elapsed = 0.0  # seconds of training, kept by whoever has a clock
        self.best_loss: float | None = None  # of all evaluations
        self.stale = 0  # evaluations since that one
        self.rng = random.Random(training.seed)
        ordered = shuffled(documents, self.rng)
        self.tokenizer = Tokenizer.from_documents([*ordered, alphabet])
        self.corpus_digest = digest_of(documents)
        check_memory(model, training, self.tokenizer.vocab_size)
        corpus = tokenize(ordered, self.tokenizer)
        parts = split(training, len(ordered))
        held_out, test = parts.held_out, parts.test
        self.remarks = list(remarks_on(ordered[:held_out], ordered[held_out:], model.block_size))
        self._tokens = corpus.tokens
        self._offsets = corpus.offsets[: held_out + 1]
        self._held_out = corpus.offsets[held_out : test + 1]
        self._test = corpus.offsets[test:]
        self.compiled = compiled_model(
            model,
            self.tokenizer.vocab_size,
            training.granularity,
            training.dtype,
            _documents_per_sweep(model, training),
        )
        self._threads = Threads(self.compiled, training.threads)
        self._shares = self._weigh()
        self._state = _optimizer_state(self.compiled, training)
        self._draw_weights()
        if training.averaging > 0:
            self._state[-1] = self._parameters

    def _draw_weights(self) -> None:
        by_input = self.training.initialization == "by-input"
        looked_up, empty = tables(self.model), zeros(self.model)
        for name, weights in self.compiled.weights.items():
            if name in empty:
                continue
            transposed = by_input and name not in looked_up
            for row in weights.T if transposed else weights:
                row[:] = [self.rng.gauss(0, INITIAL_DEVIATION) for _ in row]

    @property
    def _parameters(self) -> NDArray[np.floating]:
        program = self.compiled.program
        return program.tape_arrays.values[: program.num_params]

    @classmethod
    def resumed(cls, run: Run, documents: Sequence[str]) -> "Trainer":
        """Go on from a saved run. Raises `RunError` if it was trained on other documents."""
        trainer = cls(run.model, run.training, documents)
        if trainer.corpus_digest != run.corpus_digest:
            raise RunError(
                f"the run was trained on another corpus of {run.documents} documents:"
                " choose its --data, or another --out"
            )
        for name, weights in trainer.compiled.weights.items():
            weights[:] = run.tensors[name]
        for name, views in trainer._state_by_name().items():
            for tensor, view in views.items():
                view[:] = run.optimizer[name][tensor]
        trainer.step = run.step
        trainer.elapsed = run.elapsed
        trainer.best_loss = run.best_loss
        trainer.stale = run.stale
        trainer.rng.setstate(run.random_state)
        return trainer

    def begin_with(self, weights: Mapping[str, NDArray[np.floating]]) -> None:
        """Have these weights, by name, instead of those that were drawn."""
        for name, array in weights.items():
            self.compiled.weights[name][:] = array
        if self.training.averaging > 0:
            self._state[-1] = self._parameters

    @property
    def budget(self) -> StepBudget | TimeBudget:
        """How long to train."""
        documents = len(self._offsets) - 1
        return budget_of(self.training, -(-documents // self.training.batch_size))

    @property
    def finished(self) -> bool:
        """Whether training has spent its budget, or its patience."""
        patience = self.training.patience
        if patience is not None and self.stale >= patience:
            return True
        return self.budget.done(self.step, self.elapsed) >= self.budget.total

    def advance(self, count: int, pace: float = 0) -> NDArray[np.float64]:
        """Do `count` steps and return their losses.

        No steps still compile what they would need, but for the kernels of the model.

        With a budget of seconds the schedule goes on from `self.elapsed` at `pace` seconds a step.
        A loss, in nats, is the mean over a batch's documents of the mean over their positions; or,
        where tokens weigh the same, the sum over their positions, by the mean of all documents'.
        Raises `DivergedError` at the first loss, gradient or weight that is not finite; the trainer
        is then of no more use.
        """
        config = self.training
        if count > 0:
            self.compiled.load()
        span = self.budget.span(self.step, self.elapsed, pace)
        every = np.zeros((len(self._threads), count))
        losses: NDArray[np.float64] = every[0]
        done = self._threads.call(
            train_steps,
            Training(
                self._tokens,
                self._offsets,
                config.batch_size,
                self.compiled.documents_per_sweep,
                *self._shares,
                np.uint64(config.seed),
            ),
            kernel_optimizer(config, self._state),
            kernel_schedule(config, self.learning_rate, *span),
            self.step,
            every,
        )
        self.step += int(done)
        if done < count:
            raise self._diverged(self.step + 1, losses[done])
        if count > 0 and not np.isfinite(self._state).all():
            raise self._diverged(self.step, losses[-1])
        return losses

    def evaluate(self) -> float:
        """The loss on the held-out documents, the mean over their tokens, in nats.

        It takes its place in `best_loss` and `stale`: NaN is never an improvement.
        """
        loss = self._loss_per_token(self._held_out)
        if math.isfinite(loss) and (self.best_loss is None or loss < self.best_loss):
            self.best_loss, self.stale = loss, 0
        else:
            self.stale += 1
        return loss

    def test(self, weights: Mapping[str, NDArray[np.floating]] | None = None) -> float:
        """The loss on the documents that were held out for the end, as `evaluate` measures it.

        weights: of another state of the training, by name.
        """
        return self._loss_per_token(self._test, weights)

    def _loss_per_token(
        self,
        offsets: NDArray[np.int64],
        weights: Mapping[str, NDArray[np.floating]] | None = None,
    ) -> float:
        self.compiled.load()
        losses = np.zeros((len(self._threads), 2))
        with self.predicting(weights):
            self._threads.call(
                held_out_loss, self._tokens, offsets, self.compiled.documents_per_sweep, losses
            )
        total, tokens = losses.sum(axis=0)
        return float(total / tokens)

    @contextmanager
    def predicting(
        self, weights: Mapping[str, NDArray[np.floating]] | None = None
    ) -> Iterator[None]:
        """Predict with these weights; else with the averaged ones, if there are some."""
        latest = self._parameters.copy()
        if weights is not None:
            for name, array in weights.items():
                self.compiled.weights[name][:] = array
        elif self.training.averaging > 0:
            self._parameters[:] = self._state[-1]
        try:
            yield
        finally:
            self._parameters[:] = latest

    def _weigh(self) -> tuple[float, float]:
        """What a document and what a token weighs in the loss of a batch."""
        config = self.training
        if config.weighting == "document":
            return 1 / config.batch_size, 0.0
        lengths = np.minimum(np.diff(self._offsets) - 1, self.model.block_size)
        return 0.0, 1 / (config.batch_size * float(lengths.mean()))

    def _state_by_name(self) -> dict[str, dict[str, NDArray[np.floating]]]:
        names = state_names(self.training)
        return {
            name: self.compiled.by_name(array)
            for name, array in zip(names, self._state, strict=True)
        }

    def flops(self, count: int) -> int:
        """Floating-point operations of the next `count` steps that the model itself needs."""
        config = self.training
        documents = np.arange(
            self.step * config.batch_size, (self.step + count) * config.batch_size
        )
        documents %= len(self._offsets) - 1
        lengths = np.diff(self._offsets)[documents] - 1
        lengths = np.minimum(lengths, self.model.block_size)
        pairs = (lengths * (lengths + 1) // 2).sum()
        position, pair = flops(self.model, self.tokenizer.vocab_size)
        return int(position * lengths.sum() + pair * pairs)

    def _diverged(self, step: int, loss: float) -> DivergedError:
        """What is said of a step, counted from 1, that had this loss."""
        problem = "the loss is not finite"
        if math.isfinite(loss):
            # The optimizer's state keeps what is wrong with a gradient.
            culprit = "a weight" if np.isfinite(self._state).all() else "the gradient"
            problem = f"{culprit} is not finite, or too large"
        clip = "" if self.training.clip_norm else ", or --clip-norm 1"
        return DivergedError(
            f"training diverged at step {step}: {problem} (loss {loss:.6g},"
            f" --learning-rate {self.learning_rate:g}): try a lower rate{clip}"
        )

    def snapshot(self) -> Run:
        """What `checkpoint.save` keeps."""
        return Run(
            model=self.model,
            training=self.training,
            characters=self.tokenizer.characters,
            step=self.step,
            # Of steps the time they took is no part: equal runs are equal bytes.
            elapsed=0.0 if self.training.seconds is None else self.elapsed,
            best_loss=self.best_loss,
            stale=self.stale,
            random_state=self.rng.getstate(),
            documents=len(self._offsets) + len(self._held_out) + len(self._test) - 3,
            corpus_digest=self.corpus_digest,
            tensors=self.compiled.weights,
            optimizer=self._state_by_name(),
        )


def _optimizer_state(compiled: CompiledModel, training: TrainConfig) -> NDArray[np.floating]:
    """Zeros: (arrays, num_params)."""
    count, program = len(state_names(training)), compiled.program
    state = aligned_zeros(count * program.num_params, program.tape_arrays.values.dtype)
    return state.reshape(count, program.num_params)


def _documents_per_sweep(model: ModelConfig, training: TrainConfig) -> int:
    most = max(1, ROWS_PER_SWEEP // model.block_size)
    # An evaluation sweeps over as many as it can: four times as fast as one by one.
    evaluates = training.val_fraction + training.test_fraction > 0
    return most if evaluates else min(training.batch_size, most)


def check_memory(model: ModelConfig, training: TrainConfig, vocab_size: int) -> None:
    """Refuse sizes that this machine cannot hold, before anything is allocated."""
    documents = _documents_per_sweep(model, training)
    needed = bytes_needed(
        model,
        vocab_size,
        training.granularity,
        training.dtype,
        documents,
        optimizer_arrays=len(state_names(training)),
        threads=training.threads,
    )
    nodes = nodes_needed(model, vocab_size, training.granularity, documents)
    available = bytes_available()
    if needed > available:
        problem = f"about {needed / 1e9:.1f} GB, this machine has {available / 1e9:.1f} GB"
    elif nodes > LARGEST_TAPE:
        problem = f"about {nodes:.1e} nodes, a tape holds {LARGEST_TAPE:.1e}"
    else:
        return
    sizes = sizes_to_shrink(model)
    sizes += [f"--threads {training.threads}"] if training.threads > 1 else []
    raise UsageError(
        f"the model needs {problem} (--granularity {training.granularity}): make"
        f" {', '.join(sizes)} or --batch-size {training.batch_size} smaller"
    )
