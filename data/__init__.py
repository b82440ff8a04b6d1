"""The list of names that `train` learns from when it is given no other."""
