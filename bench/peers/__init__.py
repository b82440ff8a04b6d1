"""The same training in other libraries, each as its experts write it, on one thread.

A peer is a class: `Peer(workload, weights)`, weights by name as in a `CompiledModel`, and
`advance(first, count)` does steps first, first + 1, ... and returns their losses.
"""
