"""The examples: arrays, checked, and which of them make up each step."""

from lab.data.batches import Batches, permutation, shuffled
from lab.data.dataset import Data, load
from lab.data.idx_files import FILES

__all__ = ["FILES", "Batches", "Data", "load", "permutation", "shuffled"]
