"""Pure tensor functions, written so that XLA makes fast programs of them."""
