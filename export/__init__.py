"""From a checkpoint to one verified file."""
