"""A page in the browser that asks a trained model, `python -m tools.demo`."""
