"""Derivatives on call: gradients as values, products with the Jacobian, and a check of both."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike

from tapegpt.tape.guards import alone
from tapegpt.tape.handles import Array, Handle, Node, Scalar
from tapegpt.tape.leaves import Leaves
from tapegpt.tape.types import Floats, Ids, TapeError

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
        nodes = [self._any(other) for other in _listed(wrt)]
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
        try:
            given = [np.asarray(tangent, float) for tangent in tangents]
        except (TypeError, ValueError):
            raise TapeError(f"jvp: not a list of numbers or arrays: {tangents!r:.60}") from None
        nodes = _listed(wrt)
        if len(given) != len(nodes):
            raise TapeError(f"jvp: {len(nodes)} nodes, but {len(given)} tangents")
        for other, tangent in zip(nodes, given, strict=True):
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

    def grad_nodes(self, root: Scalar | int, wrt: Sequence[Node] | Ids) -> list[Scalar]:
        """The gradient of a scalar with respect to scalars, recorded: nodes of the tape.

        They can be used and differentiated as all nodes are, so

            (slope,) = tape.grad_nodes(x * x * x, [x])
            (curvature,) = tape.grad_nodes(slope, [x])

        is 6 x. It takes about three records for one of the graph. Exponents of `pow` are numbers as
        they are now. Raises TapeError where array operations lie between.
        """
        from tapegpt.functions.gradient_graph import gradient_nodes

        self._hold()
        try:
            before = self._end()
            try:
                tape: Any = self
                return gradient_nodes(tape, self._scalar(root), self._scalar_nodes(wrt))
            except BaseException:
                self._truncate(before)
                raise
        finally:
            self._release()

    def _scalar_nodes(self, nodes: Sequence[Node] | Ids) -> list[int]:
        given = [self._scalar(node) for node in _listed(nodes)]
        if not given:
            raise TapeError("a list of scalar nodes is wanted, not an empty one")
        arrays = list(self._shapes)
        for node in given:
            before = bisect_right(arrays, node) - 1
            if before >= 0 and node < arrays[before] + self.extents[arrays[before]]:
                raise TapeError(f"node {node} is part of the array {arrays[before]}")
        return given

    def hvp(self, root: Scalar | int, wrt: Sequence[Node] | Ids, vector: ArrayLike) -> Floats:
        """The Hessian of a scalar with respect to scalars, times a vector, in its shape.

        wrt: n scalar nodes, or an array of ids; vector: as many numbers, in the shape of the ids.
        Recorded by `grad_nodes` and forgotten again, by one more sweep: exact, for graphs of scalar
        operations. The gradients on the tape stay as they were.

            x, y = tape.var(1.0), tape.var(2.0)
            tape.hvp(x * x * y, [x, y], [1.0, 0.0])  # [2 y, 2 x] = [4, 2]

        Raises TapeError where array operations lie between.
        """
        given, nodes = self._floats(vector), self._scalar_nodes(wrt)
        shape = wrt.shape if isinstance(wrt, np.ndarray) else (len(nodes),)
        if given.shape != shape:
            raise TapeError(f"hvp: nodes of the shape {shape}, but a vector of {given.shape}")
        self._hold()
        try:
            before, gradients = self._end(), self.grads[: self._size].copy()
            try:
                slopes = self.grad_nodes(root, nodes)
                tape: Any = self
                self.backward(tape.dot(slopes, tape.variables(given.ravel()).tolist()))
                found: Floats = self.grads[np.array(nodes)].reshape(shape)
                return found
            finally:
                self._truncate(before)
                self.grads[: len(gradients)] = gradients
        finally:
            self._release()

    @alone
    def check(
        self, root: Scalar, wrt: Sequence[Handle], tolerance: float | None = None, seed: int = 0
    ) -> float:
        """Compare the gradients of a scalar with differences; the largest relative error.

        The leaves `wrt` are moved along random directions and put back. Raises TapeError where the
        error is above the tolerance, 1e-5 in float64 and 0.02 in float32 unless given; the
        gradients on the tape are then as they were before.
        """
        leaves = [self._leaf(leaf) for leaf in _listed(wrt)]
        before, without = self.grads[: self._size].copy(), self._without_gradient
        limit = TOLERANCE[self.dtype.name] if tolerance is None else tolerance
        try:
            return self._largest_error(root, leaves, limit, seed)
        except BaseException:
            self.grads[: len(before)] = before
            self._without_gradient = without
            raise

    def _largest_error(self, root: Scalar, leaves: Sequence[Any], limit: float, seed: int) -> float:
        kind, rng, worst = self.dtype.name, np.random.default_rng(seed), 0.0
        for leaf, gradient in zip(leaves, self.grad(root, leaves), strict=True):
            before: Any = self.value(leaf)
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
                    f"check: along a random direction of node {leaf} the gradient is"
                    f" {found:.6g}, but differences give {slope:.6g}"
                )
        return worst


def _listed(nodes: Any) -> Sequence[Any]:
    """A list of nodes, or what stands in an array of ids."""
    listed = nodes.ravel().tolist() if isinstance(nodes, np.ndarray) else nodes
    if not isinstance(listed, (list, tuple, range)):
        raise TapeError(f"a list of nodes is wanted, not {nodes!r:.60}")
    return listed
