"""voxray: train, tune and ablate models that read brains and medical images, on Ray."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("voxray")
except PackageNotFoundError:  # run from a source tree shipped to a cluster, where nothing is installed
    __version__ = "0.0.0+source"
