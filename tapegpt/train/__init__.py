"""One training: the trainer, when it stops, where it is saved, and what it reports."""
