"""Train several models the same way with several seeds, test each, and set them side by side."""
