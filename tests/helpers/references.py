"""What the kernels mean, in plain NumPy: obvious, slow, and sharing nothing with them."""

import numpy as np


def embed(tables, indices):
    """Row r is the sum of row indices[i][r] of every table i."""
    return sum(table[list(rows)] for table, rows in zip(tables, indices, strict=True))


def linear(x, w, residual=0.0):
    return residual + x @ w.T


def topk(x, k):
    """Where the k largest of every row stand, in order of their columns; of equals the first."""
    return np.sort(np.argsort(-x, axis=1, kind="stable")[:, :k])


def sparse_linear(x, columns, w, residual=0.0):
    """Row r of x times W (inputs, outputs), of both only columns[r]."""
    return residual + np.array([row[some] @ w[some] for row, some in zip(x, columns, strict=True)])


def rmsnorm(x, epsilon=1e-5):
    return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + epsilon)


def head_norm(x, n_head, gain=1.0, epsilon=1e-5):
    return gain * np.hstack([rmsnorm(head, epsilon) for head in np.split(x, n_head, axis=1)])


def rotary(x, positions, n_head, base):
    """Every pair of columns is a complex number, which is multiplied with e^(i angle)."""
    pairs = x.shape[1] // n_head // 2
    angles = np.outer(list(positions), [base ** (-i / pairs) for i in range(pairs)])
    turned = (x[:, ::2] + 1j * x[:, 1::2]) * np.exp(1j * np.tile(angles, n_head))
    return np.stack([turned.real, turned.imag], axis=2).reshape(x.shape)


def gelu(x):
    return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


def swiglu(x, gate):
    return x * gate / (1 + np.exp(-gate))


def relu(x):
    return np.maximum(x, 0)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def attention(q, k, v, n_head):
    """Causal: row p looks at rows 0 to p, every head at its own columns."""
    out = np.zeros_like(q)
    head_dim = q.shape[1] // n_head
    for head in range(n_head):
        columns = slice(head * head_dim, (head + 1) * head_dim)
        for p in range(len(q)):
            scores = k[: p + 1, columns] @ q[p, columns] / np.sqrt(head_dim)
            out[p, columns] = softmax(scores) @ v[: p + 1, columns]
    return out


def dropout(x, rate, key, record, residual=0.0):
    """2^32 equally likely numbers for every element; the lowest are left out."""
    kept = max(1, 2**32 - round(2**32 * rate))
    with np.errstate(over="ignore"):
        stream = _mixed(np.uint64(key) + np.uint64(record) * ODD)
        columns = np.arange(x.shape[1])
        piece = np.arange(len(x))[:, None] * -(-x.shape[1] // 16) + columns // 16
        low = _mixed(stream + piece.astype("uint64") * ODD)
        high = _mixed(low + ODD)
        finer = [_mixed(high + ODD)]
        while len(finer) < 6:
            finer.append(_mixed(finer[-1] + ODD))
    # Of each word, an element has one bit in every 16; those of the last two weigh most.
    drawn = 0
    for word in (*finer, low, high):
        for k in range(4):
            bit = word >> (columns % 16 + 16 * k).astype("uint64") & np.uint64(1)
            drawn = drawn // 2 + 2**31 * (1 - bit.astype(int))
    return residual + np.where((key == 0) | (drawn < kept), x, 0) * (
        1 if key == 0 else 2**32 / kept
    )


ODD = np.uint64(0x9E3779B97F4A7C15)


def _mixed(x):
    """SplitMix64's finaliser."""
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)


def cross_entropy(logits, targets):
    """The mean over rows of -ln softmax(logits)[target]."""
    probabilities = softmax(logits)[np.arange(len(logits)), list(targets)]
    return -np.log(probabilities).mean()


def gpt_loss(weights, n_layer, n_head, tokens):
    """The loss of one document, delimiters included; `weights` by the names of the model."""
    return cross_entropy(gpt_logits(weights, n_layer, n_head, tokens[:-1]), tokens[1:])


def gpt_logits(weights, n_layer, n_head, tokens):
    """What follows each token: (tokens, vocabulary)."""
    tables, which = [weights["wte"], weights["wpe"]], [list(tokens), range(len(tokens))]
    while (name := f"wte_back{len(tables) - 1}") in weights:
        distance = len(tables) - 1
        tables.append(weights[name])
        which.append([tokens[max(0, p - distance)] for p in range(len(tokens))])
    x = rmsnorm(embed(tables, which))
    for layer in range(n_layer):

        def through(x, name, layer=layer):
            return linear(x, weights[f"layer{layer}.{name}"])

        h = rmsnorm(x)
        q, k, v = (through(h, name) for name in ("attn_wq", "attn_wk", "attn_wv"))
        x = x + through(attention(q, k, v, n_head), "attn_wo")
        x = x + through(relu(through(rmsnorm(x), "mlp_fc1")), "mlp_fc2")
    return linear(x, weights["lm_head"])


def adam(w, g, m, v, step, rate, beta1, beta2, epsilon, weight_decay=0.0, cautious=False):
    """Algorithm 2 of Loshchilov and Hutter (2019); without decay that of Kingma and Ba (2015).

    The rate is their schedule's, for the decay too. cautious: algorithm 1 of Chen and others
    (2025). Returns w, m and v after the step.
    """
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    unbiased_m, unbiased_v = m / (1 - beta1**step), v / (1 - beta2**step)
    change = unbiased_m / (np.sqrt(unbiased_v) + epsilon)
    return w - rate * (change + weight_decay * decaying(w, change, cautious)), m, v


def decaying(w, change, cautious):
    """The weights that decay, 0 where one does not: a step goes against the change."""
    return np.where(w * change > 0, w, 0) if cautious else w


def sgd(w, g, velocity, rate, momentum):
    """w and velocity after a step."""
    velocity = momentum * velocity + g
    return w - rate * velocity, velocity


def orthogonalised(x):
    """U V^T of x = U S V^T with the singular values that three steps leave (Amsel and others 2025).

    Before the steps they are divided by the eighth root of the sum of their eighth powers, and a
    little more. The coefficients are for values of 0.0091 and more.
    """
    u, s, v = np.linalg.svd(x, full_matrices=False)
    s = s / np.sum((s / s.max()) ** 8) ** (1 / 8) / s.max() / 1.002**0.5
    for a, b, c in (
        (8.1308, -23.7671, 17.5625),
        (3.6836, -2.7558, 0.5399),
        (2.7328, -2.0352, 0.4589),
    ):
        s = a * s + b * s**3 + c * s**5
    return u * s @ v


def muon(w, g, m, rate, momentum, weight_decay=0.0, cautious=False):
    """w and the momentum m after a step."""
    m = momentum * m + (1 - momentum) * g
    moved = orthogonalised(momentum * m + (1 - momentum) * g)
    rows, columns = w.shape
    lost = rate * weight_decay * decaying(w, moved, cautious)
    return w - lost - rate * max(1, rows / columns) ** 0.5 * moved, m


def clip(g, longest):
    """The gradient of all parameters, of a norm that is `longest` at most."""
    norm = np.linalg.norm(g)
    return g * (longest / norm) if norm > longest else g
