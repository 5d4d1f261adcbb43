"""gpuserver: a school's own virtual tutor, on its own machine."""

__version__ = "0.1.0"
