"""Operations on arrays of any use, besides the layers of networks."""
