"""Weights from and to other libraries: Hugging Face's ImageGPT and OpenAI's released checkpoints."""

from igpt_model.convert.huggingface import from_huggingface, to_huggingface

__all__ = ["from_huggingface", "to_huggingface"]
