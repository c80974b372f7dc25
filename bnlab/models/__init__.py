"""One architecture a file, each a `Net` with named sites."""
