"""A recorded scalar graph as one jitted function over rows: `tape.function`.

`steps.py` reads the graph, `source.py` the
function: one vector of rows at a time, forward line by line and then back. `row_function.py` is
what users call.
"""
