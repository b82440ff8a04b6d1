"""One case for every operation, and the tests that read them."""
