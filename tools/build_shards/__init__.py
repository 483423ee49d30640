"""Build image-text shards: `python -m tools.build_shards SUBCOMMAND ...`; see docs/shards.md."""
