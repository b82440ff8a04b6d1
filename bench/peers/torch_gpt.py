"""The model in PyTorch: eager, and compiled with whole steps (gradients, Adam) in one graph."""

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name that all PyTorch code has
from workloads import BETA1, BETA2, EPSILON, NORM_EPSILON, Workload, stacked

torch.set_num_threads(1)


def norm(x):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPSILON)


def logits_of(w, x, n_layer, shape, attention, spread, collect):
    """From embeddings on. attention wants q, k and v in a shape of (documents, heads, positions,
    head_dim); spread brings rows to padded places, collect brings them back.
    """
    x = norm(x)
    for i in range(n_layer):
        qkv = spread(F.linear(norm(x), w[f"qkv{i}"])).view(shape)
        out = attention(*qkv.permute(2, 0, 3, 1, 4)).transpose(1, 2)
        x = x + F.linear(collect(out.reshape(-1, x.shape[1])), w[f"wo{i}"])
        x = x + F.linear(F.relu(F.linear(norm(x), w[f"fc1{i}"])), w[f"fc2{i}"])
    return F.linear(x, w["lm_head"])


class EagerGPT:
    """Batches without padding outside of attention; the library's fused attention and Adam."""

    def __init__(self, workload: Workload, weights: dict[str, np.ndarray]) -> None:
        model, self._training, batches = workload.model, workload.training, workload.batches()
        self._n_layer = model.n_layer
        self._shape = (batches.documents, -1, 3, model.n_head, model.n_embd // model.n_head)
        self._weights = {
            name: torch.nn.Parameter(torch.from_numpy(matrix))
            for name, matrix in stacked(weights, model.n_layer).items()
        }
        self._adam = torch.optim.Adam(
            self._weights.values(), betas=(BETA1, BETA2), eps=EPSILON, fused=True
        )
        self._batches = []
        for i in range(len(batches)):
            *numbers, row_weights, longest, places = batches.exact(i)
            gathers = None
            if places is not None:
                rows = np.full(batches.documents * longest, len(places) - 1)
                rows[places] = np.arange(len(places))
                gathers = torch.from_numpy(rows), torch.from_numpy(places)
            numbers = [torch.from_numpy(array).long() for array in numbers]
            self._batches.append((*numbers, torch.from_numpy(row_weights), gathers))

    def advance(self, first: int, count: int) -> np.ndarray:
        losses = []
        for step in range(first, first + count):
            loss = self._loss(*self._batches[step % len(self._batches)])
            loss.backward()
            rate = self._training.learning_rate * (1 - step / self._training.steps)
            self._adam.param_groups[0]["lr"] = rate
            self._adam.step()
            self._adam.zero_grad()
            losses.append(loss.detach())
        return torch.stack(losses).numpy()

    def _loss(self, tokens, positions, targets, row_weights, gathers):
        def attention(q, k, v):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

        def gather(which):
            return lambda x: x if gathers is None else x.index_select(0, gathers[which])

        w = self._weights
        x = F.embedding(tokens, w["wte"]) + F.embedding(positions, w["wpe"])
        logits = logits_of(w, x, self._n_layer, self._shape, attention, gather(0), gather(1))
        return F.cross_entropy(logits, targets, reduction="none") @ row_weights


class Gather(torch.autograd.Function):
    """x[there], where `back` finds the way back: in place of a scatter with atomic additions."""

    @staticmethod
    def forward(context, x, there, back, exists):
        context.save_for_backward(back, exists)
        return x[there]

    @staticmethod
    def backward(context, dout):
        back, exists = context.saved_tensors
        dx = dout[back]
        return dx if exists is None else dx * exists[:, None], None, None, None


class CompiledGPT:
    """Static shapes; a small model takes four steps a call. advance wants whole calls."""

    def __init__(self, workload: Workload, weights: dict[str, np.ndarray]) -> None:
        model, self._training = workload.model, workload.training
        self._steps_per_call = 4 if model.n_layer == 1 else 1
        # For narrow rows the gathers cost more than padding does.
        batches = workload.batches(pack=model.n_embd >= 64)
        self._data = [torch.from_numpy(array) for array in batches.arrays()]
        self._data[4:] = [array.long() for array in self._data[4:]]
        self._weights, self._m, self._v = (
            {name: torch.from_numpy(matrix * keep) for name, matrix in matrices.items()}
            for matrices in [stacked(weights, model.n_layer)]
            for keep in (np.float32(1), np.float32(0), np.float32(0))
        )
        for weight in self._weights.values():
            weight.requires_grad_()
        vocab = torch.arange(len(self._weights["wte"]), dtype=torch.int32)
        block = torch.arange(model.block_size, dtype=torch.int32)
        causal = torch.full((batches.longest, batches.longest), -torch.inf).tril(-1)
        head_dim = model.n_embd // model.n_head
        shape = (batches.documents, batches.longest, 3, model.n_head, head_dim)

        def attention(q, k, v):
            if batches.longest >= 256:
                return F.scaled_dot_product_attention(q, k, v, is_causal=True)
            # Keys first: the softmax then reduces over rows, which vectorises.
            scores = k @ (q * head_dim**-0.5).transpose(-1, -2) + causal
            return scores.softmax(-2).transpose(-1, -2) @ v

        def loss_of(w, tokens, positions, targets, row_weights, places, rows):
            def spread(x):
                exists = (row_weights > 0).float()
                return Gather.apply(x, rows, places, exists) if batches.packed else x

            def collect(x):
                return Gather.apply(x, places, rows, None) if batches.packed else x

            x = (tokens[:, None] == vocab).float() @ w["wte"]
            x = x + (positions[:, None] == block).float() @ w["wpe"]
            logits = logits_of(w, x, model.n_layer, shape, attention, spread, collect)
            losses = logits.logsumexp(-1) - (logits * (targets[:, None] == vocab)).sum(-1)
            return (losses * row_weights).sum()

        def train(w, m, v, rates, corrections, losses, *data):
            for i in range(self._steps_per_call):
                loss = loss_of(w, *(array[i] for array in data))
                grads = torch.autograd.grad(loss, list(w.values()))
                losses[i] = loss.detach()
                with torch.no_grad():
                    for name, g in zip(w, grads, strict=True):
                        m[name].mul_(BETA1).add_(g * (1 - BETA1))
                        v[name].mul_(BETA2).add_(g * g * (1 - BETA2))
                        root = (v[name] * corrections[i]).sqrt() + EPSILON
                        w[name].sub_(rates[i] * m[name] / root)

        torch._dynamo.reset()
        torch._dynamo.config.trace_autograd_ops = True
        self._train = torch.compile(
            train, fullgraph=True, dynamic=False, options={"cpp_wrapper": True}
        )

    def advance(self, first: int, count: int) -> np.ndarray:
        steps = np.arange(first, first + count)
        rates = self._training.learning_rate * (1 - steps / self._training.steps)
        rates = torch.from_numpy(rates / (1 - BETA1 ** (steps + 1.0))).float()
        corrections = torch.from_numpy(1 / (1 - BETA2 ** (steps + 1.0))).float()
        losses = torch.zeros(count)
        for i in range(0, count, self._steps_per_call):
            call = slice(i, i + self._steps_per_call)
            at = (first + i) % len(self._data[0])
            batch = [array[at : at + self._steps_per_call] for array in self._data]
            state = self._weights, self._m, self._v
            self._train(*state, rates[call], corrections[call], losses[call], *batch)
        return losses.numpy()
