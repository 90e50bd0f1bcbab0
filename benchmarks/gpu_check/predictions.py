"""Predicted times on an H200, from the compiled code, before any run.

Milliseconds, Olmo Hybrid 7B's shape, bfloat16, 32,768 tokens in 8 sequences or 1. Each is the larger of the bytes that
a launch moves at three quarters of 4.3 TB/s and of an in-order model of one multiprocessor's quarter fed with the
machine code. For flash-linear-attention's published times that model gives 0.7 to 0.9 of the truth, so the truth is
more likely 1.1 to 1.45 times what stands here. query_kernel, key_kernel and one sequence's backward_kernel are by a
coarser model of the same kind, which for the key_kernel before gave 0.96 where the first gave 1.00, for forward_kernel
2,940 cycles a step for 3,620: its results are scaled so. One sequence's 180 programs of backward_kernel, two on a
multiprocessor, are all there at once: 512 steps of 4,040 cycles, 1.12 ms, as its bytes. Tokens per second of a full
step: benchmarks/step_account.py's sum with every token labelled (98 ms more), the delta rule at the times below in 24
layers, its forward twice (19 and 33 ms more), and for 1 sequence 906 ms of attention for 113.
"""

PREDICTED = {
    "8 sequences: weights_kernel, 4 warps, 128 registers": 0.27,
    "8 sequences: weights_kernel, 4 warps": 0.27,
    "8 sequences: forward_kernel, 4 warps, 2 stages": 0.43,
    "8 sequences: backward_kernel, 8 warps, 2 stages": 1.43,
    "8 sequences: backward_kernel, 4 warps, 2 stages": 1.12,
    "8 sequences: query_kernel, 4 warps, 3 stages": 0.64,
    "8 sequences: query_kernel, 4 warps, 2 stages": 0.64,
    "8 sequences: query_kernel, 8 warps, 3 stages, 128 registers": 0.64,
    "8 sequences: query_kernel, 8 warps, 3 stages": 0.84,
    "8 sequences: key_kernel, 4 warps, 3 stages": 1.02,
    "8 sequences: key_kernel, 4 warps, 2 stages": 1.08,
    "8 sequences: key_kernel, 8 warps, 3 stages": 1.78,
    "8 sequences: forward": 0.72,
    "8 sequences: backward": 2.9,
    "1 sequence: forward_kernel, 4 warps, 3 stages": 0.71,
    "1 sequence: backward_kernel, 4 warps, 2 stages": 1.12,
    "1 sequence: forward": 1.0,
    "1 sequence: backward": 2.9,
    "op, 8 sequences: forward": 0.72,
    "op, 8 sequences: backward": 2.9,
    "op, 1 sequence: forward": 1.0,
    "op, 1 sequence: backward": 2.9,
    "full step, 8 sequences": 8800.0,
    "full step, 1 sequence": 7200.0,
}
