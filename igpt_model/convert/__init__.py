"""Convert weights from and to Hugging Face's ImageGPT, and from OpenAI's released checkpoints."""

from igpt_model.convert.huggingface import from_huggingface, to_huggingface

__all__ = ["from_huggingface", "to_huggingface"]
