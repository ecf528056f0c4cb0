"""Files the program ships: manifests, samples, the mini model's trained parts and their cards."""
