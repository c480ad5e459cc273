"""The training step, its mapping over devices, the training loop, and the files that a run keeps."""
