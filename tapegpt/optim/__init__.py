"""The package's optimizers for any tape: `tape.adam()` and its like, and what they give."""
