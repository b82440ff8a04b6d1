"""One network, recorded at three granularities: each builds the layers of its own.

- `unrolled.Scalar`: one node for every scalar operation, of two operands at most, as microgpt has
  them; but a product and the sum that it goes into are one.
- `unrolled.Dot`: scalar nodes still, but a sum of products or of many terms is one record, and one
  record may do the same to nodes side by side: a product of a matrix and a vector, a row of sums.
- `vector.Vector`: whole arrays, over all the rows of a batch.
"""

EPSILON = 1e-5  # of RMSNorm
