"""The network of a saved run, ready to predict."""

from dataclasses import replace

from tapegpt.checkpoint import Run
from tapegpt.counting.texts import table_of
from tapegpt.graph.compile import CompiledModel, compiled_model


def network_of(run: Run, together: int, crossed: bool = False) -> CompiledModel:
    """The network with the weights that it predicts with, for so many documents at most.

    crossed: whether its counts can leave out a fold, to predict what they are of.
    """
    model = replace(run.model, dropout=0.0)  # of nothing that is predicted
    table = None
    if model.counting and run.counted is not None:
        table = table_of(run.counted, run.tokenizer, model.counting, crossed)
    compiled = compiled_model(model, run.vocab_size, "vector", run.training.dtype, together, table)
    for name, weights in compiled.weights.items():
        weights[:] = run.weights[name]
    return compiled
