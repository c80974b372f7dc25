"""Journals as TensorBoard shows them: the only importer of tensorboard."""
