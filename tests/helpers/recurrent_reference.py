"""The recurrent nets in plain NumPy, gradients by hand: an oracle apart from tapegpt.

Weights are named as in tapegpt; a matrix is (outputs, inputs), but m of the sparse net has a row
for every input.
"""

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[np.float64]]


def loss_and_gradients(
    weights: Arrays, tokens: list[int], n_att: int | None = None
) -> tuple[float, Arrays]:
    """Mean cross-entropy of one document, delimiters included and cut to the block.

    n_att: how many coordinates of the state fire; None is the dense net.
    """
    count = min(len(weights["wpe"]), len(tokens) - 1)
    n_state = len(weights["token_proj"])
    states, fired = [np.zeros(n_state)], []
    loss, dlogits = 0.0, []
    for p in range(count):
        h = states[-1]
        x = weights["token_proj"] @ weights["wte"][tokens[p]]
        x = x + weights["pos_proj"] @ weights["wpe"][p]
        if n_att is None:
            x += weights["m"] @ h
        else:
            fired.append(np.argsort(-h, kind="stable")[:n_att])
            x += h + h[fired[-1]] @ weights["m"][fired[-1]]
        states.append(np.maximum(x, 0))
        logits = weights["lm_head"] @ states[-1]
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        loss -= np.log(shares[tokens[p + 1]]) / count
        shares[tokens[p + 1]] -= 1
        dlogits.append(shares / count)

    gradients = {name: np.zeros_like(matrix) for name, matrix in weights.items()}
    dh = np.zeros(n_state)
    for p in reversed(range(count)):
        h, after = states[p], states[p + 1]
        gradients["lm_head"] += np.outer(dlogits[p], after)
        dx = (dh + dlogits[p] @ weights["lm_head"]) * (after > 0)
        gradients["token_proj"] += np.outer(dx, weights["wte"][tokens[p]])
        gradients["wte"][tokens[p]] += dx @ weights["token_proj"]
        gradients["pos_proj"] += np.outer(dx, weights["wpe"][p])
        gradients["wpe"][p] += dx @ weights["pos_proj"]
        if n_att is None:
            gradients["m"] += np.outer(dx, h)
            dh = dx @ weights["m"]
        else:
            gradients["m"][fired[p]] += np.outer(h[fired[p]], dx)
            dh = dx.copy()
            dh[fired[p]] += weights["m"][fired[p]] @ dx
    return loss, gradients
