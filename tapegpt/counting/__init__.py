"""What counting alone knows of the next token: an interpolated modified Kneser-Ney model.

The share of a token after a context of k tokens is its discounted count there, and what the
discounts leave over goes by the share after the k - 1 nearest of them:

    p_k(x | c) = (count(c x) - discount) / count(c) + rest(c) p_k-1(x | shorter c)

The longest contexts count how often a token follows, shorter ones after how many different tokens
the context and the token have been seen together. The method is that of Chen and Goodman, "An
Empirical Study of Smoothing Techniques for Language Modeling" (1998).
"""

from tapegpt.counting.model import CountingModel
from tapegpt.counting.table import CountTable

__all__ = ["CountTable", "CountingModel"]
