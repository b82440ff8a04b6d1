"""Parameter updates, over the whole prefix of parameters at once."""

from tapegpt.kernels.jit import jit
from tapegpt.kernels.simd import lanes, load, splat, sqrt, store


@jit
def adam(values, grads, m, v, count, step, learning_rate, beta1, beta2, epsilon):
    """Adam (Kingma and Ba 2015) on parameters 0 to count - 1; their gradients become 0.

    step counts from 1; count is a whole number of vectors.
    """
    rate = learning_rate / (1 - beta1**step)
    correction = 1 / (1 - beta2**step)
    zero = splat(values, 0)
    for i in range(0, count, lanes(values)):
        g = load(grads, i)
        mean = load(m, i) * beta1 + g * (1 - beta1)
        square = load(v, i) * beta2 + g * g * (1 - beta2)
        store(m, i, mean)
        store(v, i, square)
        root = sqrt(square * correction) + epsilon
        store(values, i, load(values, i) - mean * rate / root)
        store(grads, i, zero)
