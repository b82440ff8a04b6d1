"""Operations on arrays, a file each: the formula, its forward and its backward kernel."""
