"""Derivatives on call: gradients as values, products with the Jacobian, and a check of both."""

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike

from tapegpt.tape.handles import Array, Handle, Scalar
from tapegpt.tape.leaves import Leaves
from tapegpt.tape.types import Floats, TapeError

STEP = {"float32": 2e-3, "float64": 1e-6}  # of differences, beside the size of a number
TOLERANCE = {"float32": 2e-2, "float64": 1e-5}

Value = float | Floats


class Derivatives(Leaves):
    """What `backward` gives, asked for in one call."""

    @overload
    def grad(self, node: Array) -> Floats: ...
    @overload
    def grad(self, node: Scalar | int) -> float: ...
    @overload
    def grad(
        self, node: Handle, wrt: Sequence[Handle], seed: ArrayLike | None = None
    ) -> list[Any]: ...
    def grad(
        self, node: Any, wrt: Sequence[Handle] | None = None, seed: ArrayLike | None = None
    ) -> Any:
        """The gradient of the last `backward`'s root with respect to a node, in its shape.

        grad(root, [w, b]) calls `backward` itself, and gives the gradients of the root with respect
        to these. seed: as of `backward`. Those of arrays are copies that cannot be written to.

            dw, db = tape.grad(loss, [w, b])
        """
        if wrt is None:
            return super().grad(node)
        nodes = [self._any(other) for other in wrt]
        self._hold()
        try:
            self.backward(node, seed=seed)
            return [self._read(self.grads, other) for other in nodes]
        finally:
            self._release()

    def jvp(self, node: Handle, wrt: Sequence[Handle], tangents: Sequence[ArrayLike]) -> Value:
        """How a node changes where these change by their tangents: its Jacobian times those.

        By one reverse sweep for a scalar, and one for every element of an array: for arrays with
        few elements. wrt: leaves or results; tangents: numbers and arrays of their shapes.
        """
        plain = self._any(node)
        given = [np.asarray(tangent, float) for tangent in tangents]
        if len(given) != len(wrt):
            raise TapeError(f"jvp: {len(wrt)} nodes, but {len(given)} tangents")
        for other, tangent in zip(wrt, given, strict=True):
            shape = self.shape(other)
            if tangent.shape != shape:
                raise TapeError(f"jvp: a tangent of the shape {tangent.shape}, not {shape}")

        def along(seed: Floats | None) -> float:
            gradients = self.grad(node, wrt, seed)
            products = (np.vdot(g, t) for g, t in zip(gradients, given, strict=True))
            return float(sum(products))

        if plain not in self._shapes:
            return along(None)
        found = np.zeros(self.shape(node))
        for place in np.ndindex(found.shape):
            seed = np.zeros(found.shape)
            seed[place] = 1
            found[place] = along(seed)
        return found

    def check(
        self, root: Scalar, wrt: Sequence[Handle], tolerance: float | None = None, seed: int = 0
    ) -> float:
        """Compare the gradients of a scalar with differences; the largest relative error.

        The leaves `wrt` are moved along random directions and put back. Raises TapeError where the
        error is above the tolerance, 1e-5 in float64 and 0.02 in float32 unless given.
        """
        kind = self.dtype.name
        limit = TOLERANCE[kind] if tolerance is None else tolerance
        rng, worst = np.random.default_rng(seed), 0.0
        for leaf, gradient in zip(wrt, self.grad(root, wrt), strict=True):
            before: Any = self.value(leaf)  # type: ignore[call-overload]
            direction = rng.choice([-1.0, 1.0], np.shape(before))
            step = STEP[kind] * max(1.0, float(np.max(np.abs(before))))
            values = []
            try:
                for sign in (1, -1):
                    self.set_value(leaf, before + sign * step * direction)
                    values.append(self.value(root))
            finally:
                self.set_value(leaf, before)
            slope, found = (values[0] - values[1]) / (2 * step), float(np.vdot(gradient, direction))
            scale = max(1.0, float(np.sum(np.abs(gradient))))
            error = abs(slope - found) / scale
            worst = max(worst, error)
            if not error <= limit:
                raise TapeError(
                    f"check: along a random direction of node {leaf.id} the gradient is"
                    f" {found:.6g}, but differences give {slope:.6g}"
                )
        return worst
