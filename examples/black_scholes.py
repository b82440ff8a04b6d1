"""Prices and Greeks of a million options: a formula recorded once, compiled, and mapped over rows.

Black and Scholes 1973. The five Greeks are the gradient of the price.

    python examples/black_scholes.py [options]
"""

import sys
import time

import numpy as np

from tapegpt import Tape


def normal_cdf(tape, x):
    return (tape.erf(x * 0.5**0.5) + 1.0) * 0.5


def main(count=1_000_000):
    tape = Tape()
    spot, strike, years, volatility, rate = inputs = [tape.var(1.0) for _ in range(5)]
    spread = volatility * years**0.5
    d1 = ((spot / strike).log() + (rate + volatility * volatility * 0.5) * years) / spread
    discounted = strike * (-(rate * years)).exp()
    price = spot * normal_cdf(tape, d1) - discounted * normal_cdf(tape, d1 - spread)
    f = tape.function(inputs, price)

    rng = np.random.default_rng(0)
    low, high = [80, 80, 0.2, 0.1, 0.0], [120, 120, 2.0, 0.5, 0.05]
    options = [rng.uniform(*bounds, count) for bounds in zip(low, high, strict=True)]
    prices, greeks = f.value_and_grad(*options)  # compiles
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        prices, greeks = f.value_and_grad(*options)
        seconds.append(time.perf_counter() - begin)
    print(f"{count} options, {min(seconds) / count * 1e9:.1f} ns each")
    names = ("delta", "by strike", "by time", "vega", "rho")
    for name, greek in zip(names, greeks, strict=True):
        print(f"{name:>9} of the first: {greek[0]:10.5f}")
    return prices, greeks


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
