"""The assistant's core: sound, turn taking, speech and sessions. No Qt and no torch."""
