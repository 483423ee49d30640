"""Multimodal mixture-of-experts transformers, trained with Lightning."""
