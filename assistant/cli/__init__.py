"""Commands of the core: options, the conversation in a terminal, sessions, the latency benchmark.

It knows no Qt and no torch.
"""
