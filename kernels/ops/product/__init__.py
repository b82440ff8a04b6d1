"""Matrix products: the general kernel, the matrix unit's, and those across lanes."""
