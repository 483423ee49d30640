"""Trained language models in lm-evaluation-harness, https://github.com/EleutherAI/lm-evaluation-harness."""
