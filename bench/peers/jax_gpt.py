"""The model in JAX: many steps are one jitted scan over the batches, its state donated.

Once without padding outside of attention, and once with every document as long as the longest, as
it is usually written.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from workloads import BETA1, BETA2, EPSILON, NORM_EPSILON, Workload, stacked


@jax.custom_vjp
def gather(x, there, back, exists):
    """x[there], where `back` finds the way back: XLA's scatters on a CPU are slow."""
    return x[there]


def gather_backward(saved, dout):
    back, exists = saved
    dx = dout[back]
    return dx if exists is None else jnp.where(exists[:, None], dx, 0), None, None, None


gather.defvjp(lambda x, there, back, exists: (x[there], (back, exists)), gather_backward)


def norm(x):
    return x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + NORM_EPSILON)


class JaxGPT:
    pack = True

    def __init__(self, workload: Workload, weights: dict[str, np.ndarray]) -> None:
        model, training, batches = workload.model, workload.training, workload.batches(self.pack)
        values = {k: jnp.asarray(v) for k, v in stacked(weights, model.n_layer).items()}
        zeros = [{k: jnp.zeros_like(v) for k, v in values.items()} for _ in range(2)]
        self._state = (values, *zeros)
        self._data = [jnp.asarray(array) for array in batches.arrays()]
        causal = np.where(np.tri(batches.longest, dtype=bool), 0, -np.inf).astype(np.float32)
        head_dim = model.n_embd // model.n_head

        def loss_of(w, tokens, positions, targets, row_weights, places, rows):
            vocab_size, block = len(w["wte"]), len(w["wpe"])
            x = jax.nn.one_hot(tokens, vocab_size) @ w["wte"]
            x = norm(x + jax.nn.one_hot(positions, block) @ w["wpe"])
            for i in range(model.n_layer):
                qkv = norm(x) @ w[f"qkv{i}"].T
                if batches.packed:
                    qkv = gather(qkv, rows, places, row_weights > 0)
                qkv = qkv.reshape(batches.documents, -1, 3, model.n_head, head_dim)
                q, k, v = (qkv[:, :, part] for part in range(3))
                scores = jnp.einsum("bihd,bjhd->bhij", q, k) * head_dim**-0.5
                out = jnp.einsum("bhij,bjhd->bihd", jax.nn.softmax(scores + causal, -1), v)
                out = out.reshape(-1, model.n_embd)
                if batches.packed:
                    out = gather(out, places, rows, None)
                x = x + out @ w[f"wo{i}"].T
                x = x + jax.nn.relu(norm(x) @ w[f"fc1{i}"].T) @ w[f"fc2{i}"].T
            logits = x @ w["lm_head"].T
            chosen = (logits * jax.nn.one_hot(targets, vocab_size)).sum(-1)
            return (jax.nn.logsumexp(logits, -1) - chosen) @ row_weights

        def train_step(state, step):
            w, m, v = state
            batch = (array[step % len(batches)] for array in self._data)
            loss, grads = jax.value_and_grad(loss_of)(w, *batch)
            step = step.astype(jnp.float32)
            rate = training.learning_rate * (1 - step / float(training.steps))
            rate /= 1 - BETA1 ** (step + 1)
            correction = 1 / (1 - BETA2 ** (step + 1))
            m = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, m, grads)
            v = jax.tree.map(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, v, grads)
            w = jax.tree.map(
                lambda w, m, v: w - rate * m / (jnp.sqrt(v * correction) + EPSILON), w, m, v
            )
            return (w, m, v), loss

        @partial(jax.jit, static_argnums=2, donate_argnums=0)
        def train(state, first, steps):
            return lax.scan(train_step, state, first + jnp.arange(steps))

        self._train = train

    def advance(self, first: int, count: int) -> np.ndarray:
        self._state, losses = self._train(self._state, first, count)
        return np.asarray(losses)


class PaddedJaxGPT(JaxGPT):
    pack = False
