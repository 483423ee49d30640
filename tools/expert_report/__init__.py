"""What a trained network's experts do: analyses of its routing, as a page, JSON or raw data."""
