"""Functions of single elements, or of pairs of them, between and after products."""
