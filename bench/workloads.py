"""The training runs that are measured: one definition for tapegpt and for all its peers."""

import random
from dataclasses import dataclass

import numpy as np

from tapegpt.corpus import Tokenizer, default_corpus, read_documents, shuffled, tokenize
from tapegpt.settings import ModelConfig, TrainConfig

BETA1, BETA2, EPSILON = 0.85, 0.99, 1e-8  # of Adam
NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class Batches:
    """Every batch of one pass through the corpus, as rows: one for each position of a document.

    All batches have the same number of rows; a batch with fewer positions has rows of weight 0.
    The padded places of a batch are its documents one after the other, each with as many places
    as the corpus's longest document has positions.
    """

    documents: int  # in a batch
    longest: int  # positions
    tokens: np.ndarray  # int32[batches, rows], as the others
    positions: np.ndarray
    targets: np.ndarray
    weights: np.ndarray  # float32: they sum to 1, and documents of a batch weigh the same
    places: np.ndarray  # the padded place of every row
    rows: np.ndarray  # int32[batches, places]: the row at every place, an empty one where none

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def packed(self) -> bool:
        """Whether there are fewer rows than places."""
        return self.tokens.shape != self.rows.shape

    def arrays(self) -> list[np.ndarray]:
        return [
            self.tokens, self.positions, self.targets, self.weights, self.places, self.rows
        ]  # fmt: skip

    def exact(self, i: int):
        """Batch i without empty rows: tokens, positions, targets, weights, its own longest
        document, and the places of the rows as it alone would be padded, None if it has no padding.
        """
        count = np.count_nonzero(self.weights[i])
        tokens, positions, targets, weights, places, _ = (a[i, :count] for a in self.arrays())
        longest = positions.max() + 1
        places = places // self.longest * longest + positions
        full = count == self.documents * longest
        return tokens, positions, targets, weights, longest, None if full else places


@dataclass(frozen=True)
class Workload:
    """A model, its documents, and how many steps one timed round has."""

    name: str
    model: ModelConfig
    batch_size: int
    steps: int
    documents: tuple[str, ...]

    @property
    def training(self) -> TrainConfig:
        """A rate so low that no width diverges, however long it is measured."""
        return TrainConfig(batch_size=self.batch_size, learning_rate=1e-3, steps=2**40)

    def batches(self, pack: bool = True) -> Batches:
        """What a `Trainer` of this workload reads, in its order. Without pack, a row a place."""
        ordered = shuffled(self.documents, random.Random(self.training.seed))
        corpus = tokenize(ordered, Tokenizer.from_documents(ordered))
        lengths = np.minimum(np.diff(corpus.offsets) - 1, self.model.block_size)
        lengths = lengths[: len(lengths) // self.batch_size * self.batch_size]
        lengths = lengths.reshape(-1, self.batch_size)
        longest = lengths.max()
        places = self.batch_size * longest
        pack = pack and lengths.min() < longest
        rows = lengths.sum(1).max() // 16 * 16 + 16 if pack else places
        arrays = [np.zeros((len(lengths), rows), np.int32) for _ in range(4)]
        weights = np.zeros((len(lengths), rows), np.float32)
        place_rows = np.full((len(lengths), places), rows - 1, np.int32)
        for i, batch in enumerate(lengths):
            document = np.repeat(np.arange(self.batch_size), batch)
            position = np.concatenate([np.arange(n) for n in batch])
            place = document * longest + position
            row = np.arange(len(place)) if pack else place
            at = corpus.offsets[i * self.batch_size + document] + position
            found = corpus.tokens[at], position, corpus.tokens[at + 1], place
            for array, numbers in zip(arrays, found, strict=True):
                array[i, row] = numbers
            weights[i, row] = 1 / (batch[document] * self.batch_size)
            place_rows[i, place] = row
        tokens, positions, targets, row_places = arrays
        return Batches(
            self.batch_size, int(longest),
            tokens, positions, targets, weights, row_places, place_rows,
        )  # fmt: skip


def stacked(weights: dict[str, np.ndarray], n_layer: int) -> dict[str, np.ndarray]:
    """Copies of a model's matrices, with q, k and v of a layer as one: one product for three."""
    matrices = {name: np.array(weights[name]) for name in ("wte", "wpe", "lm_head")}
    for i in range(n_layer):
        qkv = [weights[f"layer{i}.attn_w{x}"] for x in "qkv"]
        matrices[f"qkv{i}"] = np.concatenate(qkv)
        for short, name in (("wo", "attn_wo"), ("fc1", "mlp_fc1"), ("fc2", "mlp_fc2")):
            matrices[f"{short}{i}"] = np.array(weights[f"layer{i}.{name}"])
    return matrices


def step_workloads() -> list[Workload]:
    """microgpt's model at four widths, and the size at which nanoGPT trains on a CPU."""
    names = read_documents(default_corpus())
    batches = len(names) // 16
    documents = tuple(names[: 16 * batches])
    small = [
        Workload(f"d{width}", ModelConfig(n_embd=width), 16, batches, documents)
        for width in (16, 32, 64, 128)
    ]
    return [*small, stream("nanogpt", 4, 4, 128, 64, 12, steps=8)]


def long_workloads() -> list[Workload]:
    """Blocks of text, up to the size of the smallest GPT-2."""
    return [
        stream("4 x 128, block 256", 4, 4, 128, 256, 8, steps=2),
        stream("2 x 128, block 1024", 2, 4, 128, 1024, 4, steps=1),
        stream("6 x 384, block 256", 6, 6, 384, 256, 8, steps=1),
        stream("12 x 768, block 256", 12, 12, 768, 256, 2, steps=1),
    ]


def stream(
    name: str, n_layer: int, n_head: int, n_embd: int, block_size: int, batch_size: int, steps: int
) -> Workload:
    """Documents as long as the block, cut from all names: no batch has padding."""
    text = "\n".join(read_documents(default_corpus()))
    size = block_size + 1
    pieces = tuple(text[at : at + size] for at in range(0, len(text) - size, size))
    model = ModelConfig(n_layer=n_layer, n_head=n_head, n_embd=n_embd, block_size=block_size)
    return Workload(name, model, batch_size, steps, pieces)
