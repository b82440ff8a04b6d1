"""From Python functions to machine code: decorators, their cache, calls by address."""
