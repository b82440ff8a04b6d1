"""From a recorded tape to a program that is replayed many times."""
