"""Teaching a small language model to answer: the conversation corpus, its rules, and the tuning on it.

Knows no sound: a tone is a word beside what was said, as the engine writes it.
"""
