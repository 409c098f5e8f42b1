"""Networks by hand: layers, losses, optimizers, and the ready-made networks."""
