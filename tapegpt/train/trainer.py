"""A training run in memory: made from settings or from a saved run, advanced, and saved again."""

import math
import random
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tapegpt.checkpoint import Run, RunError, state_names
from tapegpt.corpus import Corpus
from tapegpt.corpus.documents import Piece, TokenizedCorpus
from tapegpt.counting.table import CountTable
from tapegpt.counting.texts import table_of
from tapegpt.graph.compile import CompiledModel, compiled_model
from tapegpt.kernels.loops.muon import Muon, no_matrices
from tapegpt.kernels.loops.train import Training, train_steps
from tapegpt.presets import default_learning_rate
from tapegpt.recorders.counter import training_flops
from tapegpt.settings import ModelConfig, TrainConfig
from tapegpt.tape.alignment import aligned_zeros
from tapegpt.train.data import training_data
from tapegpt.train.divergence import diverged
from tapegpt.train.evaluation import other_weights, total_loss
from tapegpt.train.initialization import draw_weights
from tapegpt.train.matrices import muon_of
from tapegpt.train.optimizers import kernel_optimizer
from tapegpt.train.schedules import kernel_schedule
from tapegpt.train.stopping import StepBudget, TimeBudget, budget_of
from tapegpt.train.sweep_size import check_memory, check_table, documents_per_sweep
from tapegpt.train.workers import Threads

NOTHING = Piece(TokenizedCorpus(np.zeros(0, np.int32), np.zeros(1, np.int64)), 0)
PASSES_A_STEP = 3  # forward, and backward, which is two


class Trainer:
    """The parameters, their optimizer's state and the corpus, at some step of training.

    Follows microgpt to the last random number: Python's generator is seeded, shuffles the
    documents, then draws the weights row by row, and goes on to draw the samples.
    """

    def __init__(
        self,
        model: ModelConfig,
        training: TrainConfig,
        corpus: Corpus,
        alphabet: str = "",  # characters to have beside those of the corpus
    ) -> None:
        self.learning_rate = training.learning_rate or default_learning_rate(model, training)
        self.model = model
        self.training = replace(training, learning_rate=self.learning_rate)
        self.step = 0
        self.elapsed = 0.0  # seconds of training, kept by whoever has a clock
        self.best_loss: float | None = None  # of all evaluations
        self.stale = 0  # evaluations since that one
        self.rng = random.Random(training.seed)
        self.data = training_data(corpus, model, training, self.rng, alphabet)
        self.tokenizer = self.data.tokenizer
        self.counted: NDArray[np.integer] | None = None  # tokens that the network has counts of
        table = self._count() if model.counting else None
        check_memory(model, training, self.tokenizer.vocab_size)
        self.compiled = compiled_model(
            model,
            self.tokenizer.vocab_size,
            training.granularity,
            training.dtype,
            documents_per_sweep(model, training, self.tokenizer.vocab_size),
            table,
        )
        self._threads = Threads(self.compiled, training.threads)
        self._shares = self._weigh()
        self._state = _optimizer_state(self.compiled, training)
        draw_weights(self.compiled.weights, model, training.initialization, self.rng)
        self._muon: Muon | None = None  # until its kernel is compiled
        if training.averaging > 0:
            self._state[-1] = self.compiled.parameters

    @classmethod
    def resumed(cls, run: Run, corpus: Corpus) -> "Trainer":
        """Go on from a saved run. Raises `RunError` if it was trained on another corpus."""
        trainer = cls(run.model, run.training, corpus)
        if trainer.data.digest != run.corpus_digest:
            raise RunError(
                f"the run was trained on another corpus of {run.size}:"
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
            self._state[-1] = self.compiled.parameters

    @property
    def budget(self) -> StepBudget | TimeBudget:
        """How long to train."""
        return budget_of(self.training, -(-self.data.per_pass // self.training.batch_size))

    @property
    def finished(self) -> bool:
        """Whether training has spent its budget, or its patience: after a step at least.

        Counts alone may take longer than there are seconds.
        """
        patience = self.training.patience
        if patience is not None and self.stale >= patience:
            return True
        return self.step > 0 and self.budget.done(self.step, self.elapsed) >= self.budget.total

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
        corpus = self.data.numbered(self.step * config.batch_size, count * config.batch_size)
        span = self.budget.span(self.step, self.elapsed, pace)
        every = np.zeros((len(self._threads), count))
        losses: NDArray[np.float64] = every[0]
        done = self._threads.call(
            train_steps,
            Training(
                *corpus,
                config.batch_size,
                self.compiled.documents_per_sweep,
                *self._shares,
                np.uint64(config.seed),
            ),
            kernel_optimizer(config, self._state, self._matrices()),
            kernel_schedule(config, self.learning_rate, *span),
            self.step,
            every,
        )
        self.step += int(done)
        if done < count:
            raise diverged(self.training, self._state, self.step + 1, losses[done])
        if count > 0 and not np.isfinite(self._state).all():
            raise diverged(self.training, self._state, self.step, losses[-1])
        return losses

    def evaluate(self) -> float:
        """The loss on what is held out, the mean over its tokens, in nats.

        It takes its place in `best_loss` and `stale`: NaN is never an improvement.
        """
        loss = self._loss_per_token(self.data.held_out())
        if math.isfinite(loss) and (self.best_loss is None or loss < self.best_loss):
            self.best_loss, self.stale = loss, 0
        else:
            self.stale += 1
        return loss

    def load_evaluation(self) -> None:
        """Load, or compile, what `evaluate` and `test` call, but for the kernels of the model."""
        total_loss(self.compiled, self._threads, [NOTHING])

    def test(self, weights: Mapping[str, NDArray[np.floating]] | None = None) -> float:
        """The loss on what was held out for the end, as `evaluate` measures it.

        weights: of another state of the training, by name.
        """
        return self._loss_per_token(self.data.test(), weights)

    def _loss_per_token(
        self,
        pieces: Iterable[Piece],
        weights: Mapping[str, NDArray[np.floating]] | None = None,
    ) -> float:
        with self.predicting(weights):
            total, count = total_loss(self.compiled, self._threads, pieces)
        return total / count

    @contextmanager
    def predicting(
        self, weights: Mapping[str, NDArray[np.floating]] | None = None
    ) -> Iterator[None]:
        """Predict with these weights; else with the averaged ones, if there are some."""
        averaged = self._state[-1] if self.training.averaging > 0 else None
        with other_weights(self.compiled, weights, averaged):
            yield

    def _count(self) -> CountTable:
        """The counts that the network goes by; the time that they take is time of the training."""
        begin = time.perf_counter()
        tokens = self.data.for_counts()
        check_table(len(tokens), self.model.counting, crossed=True)
        self.counted = tokens.astype(np.min_scalar_type(self.tokenizer.vocab_size - 1))
        table = table_of(tokens, self.tokenizer, self.model.counting, crossed=True)
        self.elapsed = time.perf_counter() - begin
        return table

    @property
    def tokens_per_step(self) -> float:
        """Positions that a step learns from, in the mean over the documents."""
        return self.training.batch_size * self.data.mean_length

    @property
    def evaluation_in_steps(self) -> float:
        """About how many steps take as long as one evaluation."""
        if self.training.eval_windows is not None:
            return self.training.eval_windows / self.training.batch_size / PASSES_A_STEP
        return self._measuring(self.training.val_fraction)

    @property
    def test_in_steps(self) -> float:
        """About how many steps take as long as the test at the end."""
        return self._measuring(self.training.test_fraction)

    def _measuring(self, share: float) -> float:
        """Steps that take as long as the loss on such a share of the corpus."""
        config = self.training
        trained_on = 1 - config.val_fraction - config.test_fraction
        examples = self.data.per_pass * share / trained_on
        windows = 2 if config.text else 1  # of a text they overlap by half
        return windows * examples / config.batch_size / PASSES_A_STEP

    def _weigh(self) -> tuple[float, float]:
        """What a document and what a token weighs in the loss of a batch."""
        config = self.training
        if config.weighting == "document":
            return 1 / config.batch_size, 0.0
        return 0.0, 1 / self.tokens_per_step

    def _matrices(self) -> Muon:
        """What Muon is given of the weights, or nothing for another optimizer."""
        if self._muon is None:
            config, dtype = self.training, self._state.dtype
            if config.optimizer == "muon":
                share = config.adam_rate / self.learning_rate
                self._muon = muon_of(self.model, self.compiled, config.threads, share)
            else:
                self._muon = no_matrices(dtype)
        return self._muon

    def _state_by_name(self) -> dict[str, dict[str, NDArray[np.floating]]]:
        names = state_names(self.training)
        return {
            name: self.compiled.by_name(array)
            for name, array in zip(names, self._state, strict=True)
        }

    def flops(self, count: int) -> int:
        """Floating-point operations of the next `count` steps that the model itself needs."""
        batch = self.training.batch_size
        lengths = self.data.lengths(self.step * batch, count * batch)
        return training_flops(self.model, self.tokenizer.vocab_size, lengths)

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
            documents=self.data.size,
            corpus_digest=self.data.digest,
            tensors=self.compiled.weights,
            optimizer=self._state_by_name(),
            counted=self.counted,
        )


def _optimizer_state(compiled: CompiledModel, training: TrainConfig) -> NDArray[np.floating]:
    """Zeros: (arrays, num_params)."""
    count, program = len(state_names(training)), compiled.program
    state = aligned_zeros(count * program.num_params, program.tape_arrays.values.dtype)
    return state.reshape(count, program.num_params)
