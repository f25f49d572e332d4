"""DecoupledNet: semantic segmentation learned from many image-level labels and a few pixel masks."""

__version__ = "0.1.0"
