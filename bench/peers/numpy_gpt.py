"""The model in NumPy: gradients by hand, no allocation, no padding outside of attention.

Scores lie with the keys first, so that the softmax reduces over whole rows of memory.
"""

import numpy as np
from workloads import BETA1, BETA2, EPSILON, NORM_EPSILON, Workload, stacked


class NumpyGPT:
    def __init__(self, workload: Workload, weights: dict[str, np.ndarray]) -> None:
        self._model, self._training = workload.model, workload.training
        matrices = stacked(weights, self._model.n_layer)
        ends = np.cumsum([m.size for m in matrices.values()])
        self._values = np.concatenate([m.ravel() for m in matrices.values()])
        self._grads, self._m, self._v, self._work = (np.zeros_like(self._values) for _ in range(4))
        self._weights, self._dweights = (
            {
                name: flat[end - matrix.size : end].reshape(matrix.shape)
                for (name, matrix), end in zip(matrices.items(), ends, strict=True)
            }
            for flat in (self._values, self._grads)
        )
        batches = workload.batches()
        self._causal = np.where(np.tri(batches.longest, dtype=bool).T, 0, -np.inf)
        self._causal = self._causal.astype(np.float32)[:, None, None]
        self._flat: dict = {}
        self._views: dict = {}
        self._documents = batches.documents
        self._batches = [batches.exact(i) for i in range(len(batches))]
        # For the gradients of the tables: a 1 where a row of the batch read a row of the table.
        self._reads = [
            [
                (np.arange(len(self._weights[table]))[:, None] == numbers).astype(np.float32)
                for table, numbers in (("wte", tokens), ("wpe", positions))
            ]
            for tokens, positions, *_ in self._batches
        ]

    def advance(self, first: int, count: int) -> np.ndarray:
        return np.array([self._step(i) for i in range(first, first + count)])

    def _room(self, name, *shape):
        """An array that keeps its place from step to step."""
        view = self._views.get((name, shape))
        if view is None:
            size = int(np.prod(shape))
            if name not in self._flat or self._flat[name].size < size:
                self._flat[name] = np.zeros(size, np.float32)
            view = self._views[name, shape] = self._flat[name][:size].reshape(shape)
        return view

    def _step(self, step):
        batch = step % len(self._batches)
        tokens, positions, targets, weights, width, places = self._batches[batch]
        w, dw, room = self._weights, self._dweights, self._room
        rows, n_embd = len(tokens), self._model.n_embd
        x = np.take(w["wte"], tokens, 0, out=room("x", rows, n_embd), mode="clip")
        x += np.take(w["wpe"], positions, 0, out=room("wpe", rows, n_embd), mode="clip")
        embedded = self._norm(x, "first")
        x, saved = embedded[0], []
        for i in range(self._model.n_layer):
            h = self._norm(x, f"norm_a{i}")
            qkv = np.matmul(h[0], w[f"qkv{i}"].T, out=room(f"qkv{i}", rows, 3 * n_embd))
            out, attention = self._attention(qkv, width, places, i)
            x = x + np.matmul(out, w[f"wo{i}"].T, out=room("wo", rows, n_embd))
            g = self._norm(x, f"norm_m{i}")
            f = np.matmul(g[0], w[f"fc1{i}"].T, out=room(f"f{i}", rows, 4 * n_embd))
            np.maximum(f, 0, out=f)
            x = x + np.matmul(f, w[f"fc2{i}"].T, out=room("fc2", rows, n_embd))
            saved.append((h, attention, out, g, f))

        columns = np.arange(rows)
        z = np.matmul(w["lm_head"], x.T, out=room("z", len(w["lm_head"]), rows))
        z -= z.max(0)
        target = z[targets, columns]
        np.exp(z, out=z)
        total = z.sum(0)
        loss = np.dot(np.log(total) - target, weights)

        z *= weights / total
        z[targets, columns] -= weights
        np.matmul(z, x, out=dw["lm_head"])
        dx = np.matmul(z.T, w["lm_head"], out=room("dx", rows, n_embd))
        for i in reversed(range(self._model.n_layer)):
            h, attention, out, g, f = saved[i]
            np.matmul(dx.T, f, out=dw[f"fc2{i}"])
            df = np.matmul(dx, w[f"fc2{i}"], out=room("df", rows, 4 * n_embd))
            df *= f > 0
            np.matmul(df.T, g[0], out=dw[f"fc1{i}"])
            dh = np.matmul(df, w[f"fc1{i}"], out=room("dh", rows, n_embd))
            dx += self._norm_backward(dh, *g)
            np.matmul(dx.T, out, out=dw[f"wo{i}"])
            dout = np.matmul(dx, w[f"wo{i}"], out=room("dout", rows, n_embd))
            dqkv = self._attention_backward(dout, width, places, *attention)
            np.matmul(dqkv.T, h[0], out=dw[f"qkv{i}"])
            dh = np.matmul(dqkv, w[f"qkv{i}"], out=room("dh", rows, n_embd))
            dx += self._norm_backward(dh, *h)
        dx = self._norm_backward(dx, *embedded)
        for table, reads in zip(("wte", "wpe"), self._reads[batch], strict=True):
            np.matmul(reads, dx, out=dw[table])
        self._adam(step)
        return loss

    def _norm(self, x, name):
        """x / sqrt(mean(x^2) + epsilon), and what it was multiplied with."""
        scale = self._room(f"{name}_scale", len(x), 1)
        np.einsum("ij,ij->i", x, x, out=scale[:, 0])
        scale *= 1 / x.shape[1]
        scale += NORM_EPSILON
        np.sqrt(scale, out=scale)
        np.reciprocal(scale, out=scale)
        return np.multiply(x, scale, out=self._room(name, *x.shape)), scale

    def _norm_backward(self, dy, y, scale):
        mean = self._room("norm_mean", len(y), 1)
        np.einsum("ij,ij->i", dy, y, out=mean[:, 0])
        mean *= -1 / y.shape[1]
        dx = np.multiply(y, mean, out=self._room("norm_dx", *y.shape))
        dx += dy
        dx *= scale
        return dx

    def _heads(self, array, width):
        """(rows at places, 3 n_embd) as q, k, v: each (documents, heads, positions, head_dim)."""
        heads = self._model.n_head
        parts = array.reshape(self._documents, width, -1, heads, self._model.n_embd // heads)
        return parts.transpose(2, 0, 3, 1, 4)

    def _scores(self, name, width):
        """Scores as they lie, keys first, and as (documents, heads, keys, queries)."""
        scores = self._room(name, width, self._documents, self._model.n_head, width)
        return scores, scores.transpose(1, 2, 0, 3)

    def _attention(self, qkv, width, places, layer):
        n_embd, count = self._model.n_embd, self._documents * width
        padded = qkv
        if places is not None:
            padded = self._room(f"padded{layer}", count, 3 * n_embd)
            padded[places] = qkv
        padded[:, :n_embd] *= (n_embd // self._model.n_head) ** -0.5
        q, k, v = self._heads(padded, width)
        weights, product = self._scores(f"weights{layer}", width)
        np.matmul(k, q.swapaxes(-1, -2), out=product)
        weights += self._causal[:width, ..., :width]
        weights -= weights.max(0)
        np.exp(weights, out=weights)
        weights /= weights.sum(0)
        out = self._room(f"out{layer}", count, n_embd)
        np.matmul(product.swapaxes(-1, -2), v, out=self._heads(out, width)[0])
        if places is not None:
            room = self._room(f"rows{layer}", len(places), n_embd)
            out = np.take(out, places, 0, out=room, mode="clip")
        return out, (q, k, v, weights, product)

    def _attention_backward(self, dout, width, places, q, k, v, weights, product):
        n_embd, count = self._model.n_embd, self._documents * width
        if places is not None:
            padded = self._room("dout_padded", count, n_embd)
            padded[:] = 0
            padded[places] = dout
            dout = padded
        dout = self._heads(dout, width)[0]
        dqkv = self._room("dqkv_padded", count, 3 * n_embd)
        dq, dk, dv = self._heads(dqkv, width)
        dweights, dproduct = self._scores("dweights", width)
        np.matmul(v, dout.swapaxes(-1, -2), out=dproduct)
        np.matmul(product, dout, out=dv)
        dweights -= np.einsum("jbhi,jbhi->bhi", dweights, weights)
        dweights *= weights
        np.matmul(dproduct.swapaxes(-1, -2), k, out=dq)
        np.matmul(dproduct, q, out=dk)
        dqkv[:, :n_embd] *= (n_embd // self._model.n_head) ** -0.5
        if places is None:
            return dqkv
        room = self._room("dqkv", len(places), 3 * n_embd)
        return np.take(dqkv, places, 0, out=room, mode="clip")

    def _adam(self, step):
        grads, m, v, work = self._grads, self._m, self._v, self._work
        rate = self._training.learning_rate * (1 - step / self._training.steps)
        m *= BETA1
        np.multiply(grads, 1 - BETA1, out=work)
        m += work
        v *= BETA2
        grads *= grads
        grads *= 1 - BETA2
        v += grads
        np.multiply(v, 1 / (1 - BETA2 ** (step + 1)), out=work)
        np.sqrt(work, out=work)
        work += EPSILON
        np.divide(m, work, out=work)
        work *= rate / (1 - BETA1 ** (step + 1))
        self._values -= work
