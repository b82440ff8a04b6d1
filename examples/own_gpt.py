"""A GPT of one's own: the package's, trained on names, asked and kept.

python examples/own_gpt.py [steps]
"""

import sys
import tempfile

from tapegpt import GPT, Corpus, load, train


def main(steps=2000):
    corpus = Corpus.names()
    model = GPT(corpus, n_embd=32, n_head=4, block_size=12)
    print(model)
    result = train(
        model,
        corpus,
        lambda progress: print(f"step {progress.step}, loss {progress.loss:.3f}"),
        every=max(1, steps // 4),
        steps=steps,
        batch_size=16,
        val_fraction=0.1,
    )
    print("held-out losses", result.val_losses)
    print("new names:", *model.sample(5, prompt="an", seed=1))
    print("nats per letter of anna:", model.loss("anna"))
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        print("of the copy:", load(folder).loss("anna"))
    return model, result


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
