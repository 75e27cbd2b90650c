"""Merging an archive's tasks: the task vectors side by side, the merged model's tensors, and mask statistics."""
