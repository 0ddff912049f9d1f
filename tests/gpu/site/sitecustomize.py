"""With this folder on PYTHONPATH, every new Python process pretends CUDA."""

from gpu.pretend_cuda import install

install()
