"""Parts of benchmarks/gpu.py and benchmarks/tpu.py: everything on one accelerator in one call, within minutes."""
