"""Journals as TensorBoard shows them. Nothing else in bnlab imports tensorboard."""
