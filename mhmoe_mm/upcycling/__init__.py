"""Sparse networks that start from trained dense ones (https://arxiv.org/abs/2212.05055).

dense_ffn    a dense feed-forward net as plain tensors
filling      hidden units into stacked experts, and rows into routers
sparse       into SparseMoE: copies or slices, the same function to float tolerance
multi_head   into MHMoE: an approximation, whose error is measured
net          all layers of a network
dense_moments, moments   the optimizer's state of the one, and as that of the other
model        a checkpoint into a folder that loads like an export
"""
