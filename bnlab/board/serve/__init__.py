"""`bnlab view`: TensorBoard on a folder of runs, started as a process of its own."""
