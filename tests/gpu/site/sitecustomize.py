"""On PYTHONPATH: CUDA is pretended in every process of Python that begins."""

from gpu.pretend_cuda import install

install()
