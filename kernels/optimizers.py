"""Parameter updates, over the whole prefix of parameters at once."""

from tapegpt.kernels.jit import jit
from tapegpt.kernels.simd import clear_tiny, fma, lanes, load, quick_root, splat, store, tiny


@jit
def adam(values, grads, m, v, count, step, learning_rate, beta1, beta2, epsilon):
    """Adam (Kingma and Ba 2015) on parameters 0 to count - 1; their gradients become 0.

    step counts from 1; count is a whole number of vectors.
    """
    rate = learning_rate / (1 - beta1**step)
    correction = 1 / (1 - beta2**step)
    old, new = splat(values, beta2), splat(values, 1 - beta2)
    zero = splat(values, 0)
    for i in range(0, count, lanes(values)):
        g = load(grads, i)
        # Without a gradient the moments decay, but not into the subnormal numbers.
        mean = clear_tiny(load(m, i) * beta1 + g * (1 - beta1))
        square = fma(g * new, g, fma(load(v, i), old, tiny(values)))
        store(m, i, mean)
        store(v, i, square)
        root = quick_root(square * correction) + epsilon
        store(values, i, load(values, i) - mean * rate / root)
        store(grads, i, zero)
