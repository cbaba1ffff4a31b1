"""Kernels of the sparse training step and of the feature index: one definition, several fast paths.

reference      the definition of every kernel, in plain torch
dispatch       the fastest path for a device
torch_ops      embedding bags, on any device
cpu            the C kernels
cpu_build      the C kernels compiled once and kept
tally          counting and co-firing for the feature index
self_check     Triton's kernels, each compared with the definition before its first call
call_slices    a small part of a call that is compiled as the whole is
triton         the passes over pairs on CUDA
triton_select  selection without the pre-activations on CUDA
"""
