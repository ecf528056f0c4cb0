"""The speech language model: Whisper encoder, adapter, language model with partial LoRA, emotion head."""
