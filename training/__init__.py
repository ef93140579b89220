"""From labelled structures to a checkpoint."""
