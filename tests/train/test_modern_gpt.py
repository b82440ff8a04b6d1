"""What a GPT can have beside microgpt's parts: its weights, its zeros, its refusals."""

from dataclasses import replace

import numpy as np
import pytest
import references

from tapegpt.corpus import TokenizedCorpus
from tapegpt.corpus.tokenizer import Tokenizer
from tapegpt.errors import UsageError
from tapegpt.graph.compile import compiled_model
from tapegpt.kernels.loops.batch import pack_batch
from tapegpt.kernels.loops.train import loss_and_gradient
from tapegpt.models.gpt import QK_GAIN
from tapegpt.models.registry import parameter_shapes
from tapegpt.sampling.stream import draw_text
from tapegpt.settings import ModelConfig, SampleConfig, TrainConfig
from tapegpt.tape.block import ROTARY_BASE
from tapegpt.train.trainer import Trainer

MODERN = ModelConfig(
    n_layer=2,
    n_embd=8,
    n_head=2,
    block_size=6,
    positions="rotary",
    activation="relu2",
    qk_norm=True,
    final_norm=True,
    zero_init=True,
    softcap=3.0,
)
DOCUMENTS = ["abcab", "cb", "bca"]


def logits_of(w, model, tokens):
    """The same network, line by line, for one document."""
    norm, n_head = references.rmsnorm, model.n_head

    def turned(x):
        return references.rotary(x, range(len(tokens)), n_head, ROTARY_BASE)

    x = norm(w["wte"][list(tokens)])
    for i in range(model.n_layer):
        layer = {name: w[f"layer{i}.{name}"] for name in ("attn_wq", "attn_wk", "attn_wv")}
        q, k, v = (references.linear(norm(x), matrix) for matrix in layer.values())
        q, k = (turned(references.head_norm(each, n_head, QK_GAIN)) for each in (q, k))
        x = x + references.linear(references.attention(q, k, v, n_head), w[f"layer{i}.attn_wo"])
        h = references.relu(references.linear(norm(x), w[f"layer{i}.mlp_fc1"])) ** 2
        x = x + references.linear(h, w[f"layer{i}.mlp_fc2"])
    return model.softcap * np.tanh(references.linear(norm(x), w["lm_head"]) / model.softcap)


@pytest.mark.parametrize("granularity", ["scalar", "vector"])
def test_the_loss_is_that_of_the_network_written_out(granularity):
    documents = [[3, 0, 1, 2, 0, 1, 3], [3, 2, 1, 3], [3, 1, 2, 0, 3]]
    tokens = np.concatenate(documents).astype(np.int32)
    corpus = TokenizedCorpus(tokens, np.cumsum([0, *map(len, documents)]))
    compiled = compiled_model(MODERN, 4, granularity, "float64", 1)
    rng = np.random.default_rng(0)
    for weights in compiled.weights.values():
        weights[:] = rng.normal(0, 0.4, weights.shape)
    compiled.load()
    for number, these in enumerate(documents):
        batch = pack_batch(compiled.program, *corpus, number, 1, 1.0, 0.0)
        expected = references.cross_entropy(
            logits_of(compiled.weights, MODERN, these[:-1]), these[1:]
        )
        loss = loss_and_gradient(compiled.program, batch)
        assert loss == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("granularity", ["dot", "vector"])
def test_keys_keep_their_positions_beyond_the_block(granularity):
    """What is drawn is what a network draws that reads the window again for every character."""
    characters, block, length = "\nabcdef", MODERN.block_size, 25
    compiled = compiled_model(MODERN, len(characters), granularity, "float64", 1)
    rng = np.random.default_rng(3)
    for weights in compiled.weights.values():
        weights[:] = rng.normal(0, 0.5, weights.shape)
    config = SampleConfig(length=length, temperature=0.8)
    tokenizer = Tokenizer(characters, delimited=False)
    pieces = draw_text(compiled, tokenizer, np.array([2]), config, np.random.default_rng(5))
    window, drawn = [2], []
    for uniform in np.random.default_rng(5).random(length):
        logits = logits_of(compiled.weights, MODERN, window)[-1] / 0.8
        shares = np.exp(logits - logits.max()).cumsum()
        drawn.append(int((shares <= uniform * shares[-1]).sum()))
        window.append(drawn[-1])
        if len(window) > block:
            window = window[-((block + 2) // 3) :]
    assert "".join(pieces) == characters[2] + "".join(characters[token] for token in drawn)


def test_what_is_added_and_the_last_product_are_0_at_first():
    trainer = Trainer(replace(MODERN, ensemble=2), TrainConfig(), DOCUMENTS)
    empty = {name for name, weights in trainer.compiled.weights.items() if not weights.any()}
    added = [f"layer{i}.{name}" for i in range(2) for name in ("attn_wo", "mlp_fc2")]
    assert empty == {f"net{i}.{name}" for i in range(2) for name in ("lm_head", *added)}
    assert trainer.advance(1)[0] == pytest.approx(np.log(4), rel=1e-6)  # a, b, c and the end


def test_swiglu_has_a_third_matrix_and_as_many_weights():
    config = ModelConfig(n_embd=24)
    relu, swiglu = (
        parameter_shapes(replace(config, activation=name), 5) for name in ("relu", "swiglu")
    )
    assert swiglu.keys() - relu.keys() == {"layer0.mlp_gate"}
    sizes = [sum(rows * columns for rows, columns in each.values()) for each in (relu, swiglu)]
    assert sizes[0] == sizes[1]


def test_rotary_positions_have_no_table_and_want_pairs():
    assert "wpe" not in parameter_shapes(MODERN, 5)
    with pytest.raises(UsageError, match=r"--positions rotary .* multiple of 6"):
        ModelConfig(n_embd=9, n_head=3, positions="rotary")


def test_a_switch_is_on_or_off_and_may_be_turned_off_again(call, refused, tmp_path):
    train = ("train", "--data", tmp_path / "names.txt", "--steps", 1)
    (tmp_path / "names.txt").write_text("ab\n")
    for flags, shown in ((["--qk-norm"], "true"), (["--qk-norm", "--no-qk-norm"], "false")):
        call(*train, *flags, "--overwrite", "--out", tmp_path / "out")
        assert f'"qk_norm": {shown}' in (tmp_path / "out" / "run.json").read_text()
    refused(*train, "--qk-norm=1", "--out", tmp_path / "other", names="--qk-norm")
    refused(*train, "--model", "rnn", "--qk-norm", names=("--qk-norm", "--model gpt"))
    with pytest.raises(UsageError, match="--qk-norm 1 is neither on nor off"):
        ModelConfig(qk_norm=1)
