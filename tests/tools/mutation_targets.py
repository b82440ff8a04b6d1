"""What mutation.py runs for each kernel, and which mutants compute the same."""

SIMD = [
    "test_simd.py test_simd_lists.py",
    "test_matmul.py test_lanes.py",
    "test_array_operations.py",
]

# For each kernel what pytest is called with, one call after the other, the most telling first.
TESTS = {
    "amx": ["test_matmul.py -k unit", "test_passes.py -k wide"],
    "attention": [
        "test_array_operations.py -k attention",
        "test_attention.py",
        "test_batch.py test_sampling.py -k gradient_of_a_batch or every_width or plain_network",
    ],
    "batch": ["test_batch.py", "test_validation.py -k loss_of_all"],
    "cross_entropy": [
        "test_array_operations.py -k cross_entropy or extreme or nan",
        "test_batch.py test_gradients.py -k loss_of_a_batch or position or cross_entropy",
    ],
    "dropout": [
        "test_array_operations.py test_gradients.py -k dropout and not a_model",
        "test_training.py -k dropout",
        "test_batch.py",
    ],
    "elementwise": [
        "test_array_operations.py -k relu or add or scale or mean or several or dropout",
        "test_gradients.py -k array or mean",
        "test_batch.py test_recurrence.py",
    ],
    "embedding": ["test_array_operations.py test_gradients.py -k embed", "test_batch.py"],
    "sample": ["test_sampling.py"],
    "continuation": ["test_text_sampling.py"],
    "lane_batching": [
        "test_array_operations.py -k attention",
        "test_lanes.py",
        "test_attention.py",
        "test_sampling.py -k every_width or plain_network",
    ],
    "linear": [
        "test_array_operations.py test_gradients.py -k linear",
        "test_passes.py test_batch.py",
    ],
    "matmul": ["test_array_operations.py -k linear", "test_matmul.py"],
    "optimizers": ["test_optimizers.py", "test_threads.py", "test_divergence.py"],
    "dot": [
        "test_scalar_operations.py test_gradients.py -k dot",
        "test_scalar_operations.py test_tape.py",
    ],
    "recurrence": ["test_recurrence.py", "test_sampling.py -k plain_network"],
    "scalar/reduce": [
        "test_scalar_operations.py -k sum or max or edges",
        "test_scalar_operations.py test_gradients.py -k random or sum or max",
    ],
    "rmsnorm": ["test_array_operations.py test_gradients.py -k rmsnorm", "test_batch.py"],
    "layout": ["test_array_operations.py -k relu or mean", "test_batch.py"],
    "strided": [
        "test_runs.py",
        "test_scalar_operations.py test_gradients.py -k record or runs",
        "test_scalar_operations.py test_tape.py",
    ],
    "formulas": ["test_scalar_operations.py", "test_tape.py"],
    "schedules": ["test_schedules.py"],
    "softmax": [
        "test_array_operations.py -k softmax or cross_entropy or extreme or nan",
        "test_batch.py test_gradients.py -k loss_of_a_batch or position or softmax",
    ],
    "loops/train": ["test_batch.py", "test_threads.py", "test_training.py", "test_divergence.py"],
    "interpreter": [
        "test_scalar_operations.py",
        "test_batch.py",
        "test_recurrence.py",
        "test_tape.py",
    ],
    "thread_group": ["test_threads.py"],
    "topk": ["test_topk.py", "test_array_operations.py test_gradients.py -k sparse"],
    "validation": ["test_validation.py test_text_training.py", "test_threads.py"],
    "simd/lanewise": SIMD,
    "simd/memory": SIMD,
    "simd/reduce": SIMD,
    "simd/tile": SIMD,
    "simd/tile_products": SIMD,
    "simd/tile_rows": SIMD,
    "simd/types": SIMD,
    "simd/math": [
        "test_vmath.py test_vmath_near.py",
        "test_scalar_operations.py -k edges or float32",
    ],
}

# Mutants that compute the same, and why: all in one place of a function (what is assigned, called,
# returned, looped over or asked), or a single change there.
EQUIVALENT = {
    "Packing and the width of panels change the speed alone; there is always room for a panel.": [
        "matmul.matmul, packing: and -> or",
        "matmul.matmul, packing: >= -> >",
        "matmul.matmul, packing: >= -> <",
        "matmul.matmul, far_left: >= -> >",
        "matmul.matmul, far_left: >= -> <",
        "matmul.matmul, packing_left: >= -> >",
        "matmul.next_panel, if vectors: < -> <=",
        "matmul.next_panel, vectors: >= -> >",
    ],
    "What is asked for ahead of time is there sooner, and changes nothing else.": [
        "matmul.make_panel.panel, if columns",
        "matmul.make_panel.panel, for ahead",
        "matmul.make_panel.panel, for c",
        "matmul.make_panel.panel, prefetch",
    ],
    "A panel is deeper than 2: products of depth 1 and 2 take one round.": [
        "matmul.matmul, for k: 1 -> 2",
    ],
    "How often a thread that waits leaves the processor to others changes the speed alone.": [
        "thread_group.all_reduce_sum, looks",
        "thread_group.all_reduce_sum, if looks",
        "thread_group.all_reduce_sum, yield_processor",
    ],
    "How far a tile reaches matters only where bounds are checked.": [
        "amx.define_move.move_sum.codegen, extent",
    ],
    "More room than needed will do.": [
        "amx.amx_room, tiles: min -> max",
    ],
    "Rows beyond the last one are the last one again: it is stored once more.": [
        "rmsnorm.rmsnorm_forward, tile_store: - -> +",
    ],
    "The last of one is the first.": [
        "thread_group.arrive.codegen, at",
        "thread_group.arrived.codegen, at",
    ],
    "What is cleared once more, or copied onto itself, stays what it is.": [
        "train.loss_and_gradient, grads: min -> max",
        "thread_group.broadcast_parameters, if thread: > -> >=",
    ],
    "The difference is finite where the sum is.": [
        "optimizers.adam, total: + -> -",
        "optimizers.sgd, total: + -> -",
    ],
    "No norm is above infinity, and one that is the longest allowed is multiplied by 1.": [
        "optimizers.update, if optimizer: < -> <=",
        "optimizers.clip_gradient, if longest: < -> <=",
    ],
    "Nobody reads the second column of the sums.": [
        "dot.dot_rows_forward, sums: 1 -> 2",
    ],
    "A single row lies where it begins, whatever the distance of the next.": [
        "topk.gathered_product, one_row",
    ],
    "No row comes before the first position.": [
        "interpreter.reverse_sweep, if here: > -> >=",
    ],
    "Where the rate has just risen it is the largest, with either formula.": [
        "schedules.scheduled_rate, if risen: < -> <=",
    ],
}
