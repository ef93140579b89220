"""Other projects' model files as checkpoints of ours; see :mod:`triforces_deploy.importing.importing`."""
