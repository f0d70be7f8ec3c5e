"""CUDA kernels: plain functions on pointers; their names mirror those in `sparsembed.kernels.cpu`."""
