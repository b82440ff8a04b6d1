"""How many documents a sweep takes, and whether this machine has the memory for it."""

from tapegpt.checkpoint import state_names
from tapegpt.counting.table import bytes_of
from tapegpt.errors import UsageError
from tapegpt.models.registry import parameter_totals
from tapegpt.recorders.memory_estimate import bytes_needed, nodes_needed, sizes_to_shrink
from tapegpt.settings import ModelConfig, TrainConfig
from tapegpt.system.host import bytes_available
from tapegpt.tape.storage import LARGEST_TAPE
from tapegpt.train.matrices import bytes_beside

# A larger batch is swept in several parts, whose gradients are added up: what a part writes is then
# still in the cache when it is read.
ROWS_PER_SWEEP = 256

# From so many weights on, they and their gradients do not fit in a third-level cache of 32 MB, and
# fewer sweeps of more rows are quicker. The limit is that of all machines, so that losses repeat.
LARGE_MODEL, ROWS_OF_LARGE = 1 << 22, 1024

# From so many weights on, an ensemble leaves the second-level cache between two sweeps. Lines fill
# about half of their blocks, so sweeps of twice the documents are quicker there: 12 % with `60s`.
LARGE_ENSEMBLE = 1 << 19


def most_documents(model: ModelConfig, vocab_size: int) -> int:
    """How many documents are swept together where nothing else limits it."""
    _, weights = parameter_totals(model, vocab_size)
    rows = ROWS_PER_SWEEP if weights < LARGE_MODEL else ROWS_OF_LARGE
    return max(1, rows // model.block_size)


def documents_per_sweep(model: ModelConfig, training: TrainConfig, vocab_size: int) -> int:
    """How many documents are swept together, at most."""
    most = most_documents(model, vocab_size)
    _, weights = parameter_totals(model, vocab_size)
    if model.ensemble > 1 and LARGE_ENSEMBLE <= weights < LARGE_MODEL and not training.text:
        most *= 2
    # An evaluation sweeps over as many as it can: four times as fast as one by one.
    evaluates = training.val_fraction + training.test_fraction > 0
    return most if evaluates else min(training.batch_size, most)


def check_table(tokens: int, orders: int, crossed: bool) -> None:
    """Refuse counts that this machine's memory cannot hold. Raises `UsageError`."""
    needed, available = bytes_of(tokens, orders, crossed), bytes_available()
    if needed > available:
        raise UsageError(
            f"the counts of {tokens} tokens need about {needed / 1e9:.1f} GB, this machine has"
            f" {available / 1e9:.1f} GB: make --counting {orders} smaller"
        )


def check_memory(model: ModelConfig, training: TrainConfig, vocab_size: int) -> None:
    """Refuse sizes that this machine cannot hold, before anything is allocated.

    Raises `UsageError`.
    """
    documents = documents_per_sweep(model, training, vocab_size)
    needed = bytes_needed(
        model,
        vocab_size,
        training.granularity,
        training.dtype,
        documents,
        optimizer_arrays=len(state_names(training)),
        threads=training.threads,
    )
    if training.optimizer == "muon":
        needed += training.threads * bytes_beside(model, vocab_size, training.dtype)
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
