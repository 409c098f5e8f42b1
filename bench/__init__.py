"""What a step costs, ours and others': bin/bench --help."""
