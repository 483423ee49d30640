"""Files and folders that are there whole or not at all, and checkpoints that say so themselves."""
