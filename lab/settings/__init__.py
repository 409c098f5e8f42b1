"""What a run is, from the command line to a checked value. No TensorFlow."""
