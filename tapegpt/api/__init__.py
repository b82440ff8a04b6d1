"""Models from Python: a corpus, a model, training, samples, weights, files."""
