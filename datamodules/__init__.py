"""Data modules over webdataset shards."""
