"""Networks: encoder, adapters, emotion head, partial LoRA, 8-bit and 4-bit layers, Whisper's decoder.

They know tensors and configurations, but no files.
"""
