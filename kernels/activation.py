"""What becomes of a matrix product before it is stored."""

# Nothing, or max(0, of it). Any other activation is the index, in the array of the product's right
# operand, of numbers laid out as the product is: it is 0 where they are not positive.
IDENTITY, RELU = -1, -2
